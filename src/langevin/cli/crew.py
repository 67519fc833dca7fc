"""Processes that take tasks from one list, so that one of them can be killed and nothing that was finished is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import langevin

from ..core.errors import InputError

START = "from langevin.cli.worker import main; main()"
TRIES = 2
"""How often a task is begun, and a process in one place: what killed two processes may be the task itself."""
PATIENCE = 10
"""Seconds that a process has to put down what it holds."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task, or with `task` None something to tell.

    Attributes:
        task: its position in the list.
        fault: why it is not done; None when it is.
        said: what was printed on the way.
    """

    task: int | None
    fault: str | None = None
    said: str = ""


class Worker:
    """One process, told first how to begin and then one task at a time; it answers each with a line of JSON.

    Attributes:
        place: its number among the processes that work together.
        task: the position of the task in hand, None when it has none.
    """

    def __init__(self, place: int, begin: dict[str, Any], events: SimpleQueue) -> None:
        self.place, self.begin = place, begin
        self.task: int | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=environment(begin["threads"]),
            start_new_session=True,  # Ctrl-C is for the process that the user started; it ends the others.
        )
        self.tell(begin)
        Thread(target=self._listen, args=(events,), daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a line; that the process is gone is heard in `_listen`."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def take(self, task: int, message: dict[str, Any]) -> None:
        """Give it a task."""
        self.task = task
        self.tell(message)

    def _listen(self, events: SimpleQueue) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):
                events.put((self, json.loads(line)))
        self.process.wait()
        events.put((self, None))

    @property
    def ending(self) -> str:
        """How the process ended."""
        status = self.process.poll()
        if status is None or status >= 0:
            return f"ended with status {status}"
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
        return f"was ended by signal {-status}"

    def dismiss(self, *, at_once: bool) -> None:
        """Let the process end; what it has in hand is put down at once, but never half written."""
        with suppress(OSError, ValueError):
            self.process.stdin.close()  # type: ignore[union-attr]
        if at_once:
            self.process.terminate()

    def wait(self) -> None:
        """Wait until the process has ended, with patience that has an end."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a process that computes with so many threads and imports what this one does."""
    home = str(Path(langevin.__file__).parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    if threads is not None:
        given |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**os.environ, **given}


class Crew:
    """Processes that take tasks one after the other until all are done or no process is left.

    Args:
        tasks: what a process is told of each.
        begins: what each process is told first.
    """

    def __init__(self, tasks: Sequence[dict[str, Any]], begins: Sequence[dict[str, Any]]) -> None:
        self.tasks, self.waiting = tasks, deque(range(len(tasks)))
        self.begun: Counter[int] = Counter()
        self.places = Counter(range(len(begins)))
        self.events: SimpleQueue = SimpleQueue()
        self.ready: list[Worker] = []
        self.refusals: list[str] = []
        self.working = False
        self.crew = [Worker(place, begin, self.events) for place, begin in enumerate(begins)]

    def work(self) -> Iterator[Outcome]:
        """Yield what becomes of the tasks.

        The task of a process that ends is begun once more, and so is a process in its place, unless the others are as
        many as the tasks that wait.

        Raises:
            InputError: when every process refuses to begin.
        """
        left = len(self.tasks)
        try:
            while left:
                worker, message = self.events.get()
                for outcome in self._heard(worker, message):
                    left -= outcome.task is not None
                    yield outcome
                while self.ready and self.waiting:
                    task = self.waiting.popleft()
                    self.begun[task] += 1
                    self.ready.pop(0).take(task, self.tasks[task])
        finally:
            for worker in self.crew:
                worker.dismiss(at_once=worker not in self.ready)
            for worker in self.crew:
                worker.wait()

    def _heard(self, worker: Worker, message: dict[str, Any] | None) -> Iterator[Outcome]:
        """Yield what follows from a message of a process, None when it has ended."""
        if worker not in self.crew:
            return
        if message is None:
            yield from self._ended(worker)
        elif "refused" in message:
            self.crew.remove(worker)
            self.refusals.append(message["refused"])
            if not self.crew and not self.working:
                raise InputError(self.refusals[-1])
        else:
            self.working = True
            if worker.task is not None:
                yield Outcome(worker.task, message["fault"], message["said"])
                worker.task = None
            self.ready.append(worker)
        if self.working:
            yield from (Outcome(None, said=f"A process cannot begin: {why}") for why in self.refusals)
            self.refusals = []
        if not self.crew:
            yield from (Outcome(task, fault="no process is left") for task in self.waiting)
            self.waiting.clear()

    def _ended(self, worker: Worker) -> Iterator[Outcome]:
        """Yield what follows from the end of a process; its task and its place are given to another."""
        self.crew.remove(worker)
        if worker in self.ready:
            self.ready.remove(worker)
        yield Outcome(None, said=f"Process {worker.place} {worker.ending}.")
        if worker.task is not None and self.begun[worker.task] < TRIES:
            self.waiting.appendleft(worker.task)
        elif worker.task is not None:
            yield Outcome(worker.task, fault=f"its process {worker.ending}, {TRIES} times")
        if len(self.waiting) > len(self.crew) and self.places[worker.place] < TRIES:
            self.places[worker.place] += 1
            self.crew.append(Worker(worker.place, worker.begin, self.events))
