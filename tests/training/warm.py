"""A process that imported what recipes need and runs functions in processes of its own, which begin at once.

Such a process can be killed as any other, and several of them can train together. It is a process beside that of the
tests because a process with threads, as pytest's may be, should not be copied.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

from tests.guard.sockets import ALLOWED

NEEDED = (
    "accelerate",
    "transformers",
    "transformers.models.clip.modeling_clip",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "langevin.training.recipes.text_to_image",
    "langevin.pipelines.stable_diffusion",
)
PATIENCE = 600.0


class Group:
    """Processes that were started together.

    Attributes:
        pids: of the processes, by rank.
        folder: where they run, and where `said-RANK` holds what they printed.
    """

    def __init__(self, warm: Warm, pids: Sequence[int], folder: Path) -> None:
        self.warm, self.pids, self.folder = warm, list(pids), folder

    def wait(self) -> list[int]:
        """Return the exit status of every process, or minus the signal that ended it."""
        return self.warm.ask({"wait": self.pids})

    def alive(self) -> bool:
        """Tell whether the first process still runs."""
        return self.warm.ask({"alive": self.pids[0]})

    def kill(self) -> None:
        """Kill all of them."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)

    def said(self, rank: int = 0) -> str:
        """Return what a process printed."""
        return (self.folder / f"said-{rank}").read_text(encoding="utf-8")


class Warm:
    """The process, as tests see it."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def ask(self, what: Mapping[str, Any]) -> Any:
        """Send a request and return its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def here(self, call: str, *args: Any) -> None:
        """Call `module:function` in the process itself, so that those that it starts find what that left in memory."""
        assert self.ask({"here": call, "args": args})

    def start(self, folder: Path, call: str, *args: Any, processes: int = 1, **settings: str) -> Group:
        """Start processes that call `module:function` in a folder, with arguments that JSON can hold.

        Args:
            processes: how many, as accelerate would start them.
            settings: variables of their environment.
        """
        folder.mkdir(parents=True, exist_ok=True)
        asked = {"folder": str(folder), "call": call, "args": args, "processes": processes, "settings": settings}
        return Group(self, self.ask(asked), folder)

    def run(self, folder: Path, call: str, *args: Any, **options: Any) -> Group:
        """Start processes and wait until all are done, without an error."""
        group = self.start(folder, call, *args, **options)
        found = group.wait()
        assert not any(found), group.said(next(rank for rank, status in enumerate(found) if status))
        return group


@contextmanager
def warm() -> Iterator[Warm]:
    """Context with such a process."""
    command = [sys.executable, "-m", "tests.training.warm"]
    env = os.environ | {ALLOWED: "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield Warm(process)
        assert process.stdin is not None
        process.stdin.close()


def called(call: str, args: Sequence[Any]) -> None:
    """Call `module:function`, or a method of a class there."""
    module, name = call.split(":")
    attrgetter(name)(importlib.import_module(module))(*args)


def copied(request: Mapping[str, Any], rank: int, port: int) -> int:
    """Return the process that does what a request asks, as one of several."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.chdir(request["folder"])
        said = os.open(f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        os.environ.update(request["settings"])
        if request["processes"] > 1:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["processes"], "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in ranks.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
        called(request["call"], request["args"])
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def waited(pids: Sequence[int]) -> list[int]:
    """Return how processes ended; those that are still there after `PATIENCE` are killed."""
    found: dict[int, int] = {}
    end = time.monotonic() + PATIENCE
    while len(found) < len(pids):
        for pid in set(pids) - set(found):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                found[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return [found[pid] for pid in pids]


def alive(pid: int) -> bool:
    """Tell whether a process still runs, without taking note of its end."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None


def main() -> None:
    """Answer requests until there are no more."""
    for name in NEEDED:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer: Any = waited(request["wait"])
        elif "alive" in request:
            answer = alive(request["alive"])
        elif "here" in request:
            called(request["here"], request["args"])
            answer = True
        else:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            answer = [copied(request, rank, port) for rank in range(request["processes"])]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
