"""Processes that take tasks from one list, with small stand-ins for those that draw: who dies, refuses, is stopped."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from threading import Timer

import psutil
import pytest

from langevin.cli import crew
from langevin.cli.crew import Crew
from langevin.core.errors import InputError

STAND_IN = """
import json, os, sys, time
from pathlib import Path
begin = json.loads(sys.stdin.readline())
def answer(**message):
    print(json.dumps(message), flush=True)
if begin.get("refuses"):
    answer(refused=begin["refuses"])
    sys.exit()
answer()
for line in sys.stdin:
    task = json.loads(line)
    if "dies" in task and len(list(Path(task["dies"]).iterdir())) < task["times"]:
        Path(task["dies"], str(os.getpid())).touch()
        os.kill(os.getpid(), 9)
    time.sleep(task.get("takes", 0))
    print("a line that is no answer", flush=True)
    answer(fault=task.get("fault"), said=task.get("said", ""))
"""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch) -> None:
    monkeypatch.setattr(crew, "START", STAND_IN)


def begins(count: int, **more) -> list[dict]:
    return [{"threads": 1, **more} for _ in range(count)]


def faults(outcomes) -> dict[int, str | None]:
    """Return task -> fault; every task is heard of once."""
    heard = [outcome for outcome in outcomes if outcome.task is not None]
    assert max(Counter(outcome.task for outcome in heard).values()) == 1
    return {outcome.task: outcome.fault for outcome in heard}


@pytest.mark.parametrize("count", [1, 3])
def test_every_task_is_done_once(count) -> None:
    outcomes = list(Crew([{"said": str(k)} for k in range(7)], begins(count)).work())
    assert faults(outcomes) == dict.fromkeys(range(7))
    assert all(outcome.said == str(outcome.task) for outcome in outcomes)


@pytest.mark.parametrize("count", [1, 2])
def test_the_task_of_a_killed_process_is_done_by_another(tmp_path, count) -> None:
    tasks = [{}, {"dies": str(tmp_path), "times": 1}, {}, {}]
    outcomes = list(Crew(tasks, begins(count)).work())
    assert faults(outcomes) == dict.fromkeys(range(4))
    assert [outcome.said for outcome in outcomes if outcome.task is None and "SIGKILL" in outcome.said]


def test_a_task_that_kills_its_process_twice_is_left(tmp_path) -> None:
    outcomes = list(Crew([{}, {"dies": str(tmp_path), "times": 9}, {}, {}], begins(2)).work())
    assert faults(outcomes) == {0: None, 1: "its process was ended by SIGKILL, 2 times", 2: None, 3: None}
    assert len(list(tmp_path.iterdir())) == 2


def test_processes_are_not_begun_without_end(tmp_path) -> None:
    tasks = [{"dies": str(tmp_path), "times": 99} for _ in range(9)]
    found = faults(Crew(tasks, begins(2)).work())
    assert len(found) == 9 and "no process is left" in found.values()
    assert len(list(tmp_path.iterdir())) == 4, "each of two places was filled twice"


def test_a_fault_is_told_and_the_others_go_on() -> None:
    assert faults(Crew([{}, {"fault": "too dark"}, {}], begins(1)).work()) == {0: None, 1: "too dark", 2: None}


def test_a_refusal_of_all_is_an_error_and_one_of_some_is_told() -> None:
    with pytest.raises(InputError, match="no such model"):
        list(Crew([{}, {}], begins(2, refuses="no such model")).work())
    outcomes = list(Crew([{"takes": 0.3}] * 3, [*begins(1, refuses="no memory"), *begins(1)]).work())
    assert faults(outcomes) == dict.fromkeys(range(3))
    assert [outcome.said for outcome in outcomes if outcome.task is None] == ["A process cannot begin: no memory"]


def test_no_process_outlives_an_interrupt() -> None:
    working = Crew([{}, {"takes": 60}, {"takes": 60}], begins(2))
    outcomes = working.work()
    assert next(outcomes).task == 0
    there = [worker.process.pid for worker in working.crew]
    begun = time.monotonic()
    outcomes.close()
    assert time.monotonic() - begun < crew.PATIENCE / 2
    assert len(there) == 2 and not any(psutil.pid_exists(pid) for pid in there)


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C as in a shell, also where the tests were started by something that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_while_all_compute(heard: None) -> None:
    working = Crew([{}, {"takes": 60}], begins(1))
    outcomes = working.work()
    assert next(outcomes).task == 0
    there = [worker.process.pid for worker in working.crew]
    Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert not any(psutil.pid_exists(pid) for pid in there)


def test_a_process_computes_with_its_threads_and_imports_what_this_one_does(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    found = crew.environment(3)
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "3"
    assert found["PYTHONPATH"].split(os.pathsep)[1] == "elsewhere"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in crew.environment(None)
