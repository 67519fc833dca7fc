"""A process of `langevin generate --prompts`: it loads the model once and draws the pictures that it is told."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import LangevinError
from .calling import arguments
from .generate import draw_one
from .model import build_scheduler, load, pick_class
from .output import put
from .request import Request, find_scheduler
from .sources import read


class Painter:
    """A loaded model and the request that all pictures share.

    Args:
        request: its prompt and seed are those of no picture.
        stamp: what the pictures say beside what they were made with.
    """

    def __init__(self, request: Request, stamp: dict[str, Any]) -> None:
        self.request, self.stamp = request, stamp
        self.sources = read(request)
        self.cls = pick_class(request)
        self.pipe = load(self.cls, request)
        self.scheduler = build_scheduler(self.pipe, find_scheduler(request.scheduler)) if request.scheduler else None

    def draw(self, prompt: str, seed: int, path: str) -> None:
        """Draw one picture into a file."""
        request = replace(self.request, prompt=prompt, seed=seed)
        call = arguments(self.cls, request)
        (image,), (facts,) = draw_one(self.pipe, request, call, self.sources, self.scheduler)
        put(Path(path), image, facts | self.stamp)


def told(error: Exception) -> str:
    """Return an error in a line; what is no mistake of the request is printed in full."""
    if isinstance(error, LangevinError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def main() -> None:
    """Answer until there is nothing left to answer, or until asked to end by SIGTERM; and end without delay."""
    status = 1

    def leave(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        serve()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException as error:
        traceback.print_exception(error)
    finally:
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    """Answer every line of standard input with one on standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What libraries print is no answer.

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    begin = json.loads(sys.stdin.readline())
    lists = {name: tuple(begin["request"][name]) for name in ("lora", "embedding")}
    try:
        if begin["threads"] is not None:
            torch.set_num_threads(begin["threads"])
        painter = Painter(Request(**{**begin["request"], **lists}), begin["stamp"])
    except Exception as error:
        answer(refused=told(error))
        return
    answer()
    for line in sys.stdin:
        fault, said = None, io.StringIO()
        try:
            with redirect_stderr(said):
                painter.draw(**json.loads(line))
        except Exception as error:
            fault = told(error)
        answer(fault=fault, said=said.getvalue().strip())
