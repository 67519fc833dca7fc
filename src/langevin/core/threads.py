"""Work on many tensors of a CPU: a thread per core that works alone, instead of cores that wait for each other.

torch splits every operation over its threads, which meet at the end of each. With many small operations they wait more
than they work, and on a machine that is busy they wait for threads that do not run at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return `work(item)` of every item, in as many threads as torch may use, each of which uses one core.

    What `work` raises is raised here, for the first item that fails; the others may have been worked on.
    """
    todo = list(items)
    count = min(torch.get_num_threads(), len(todo))
    if count < 2:
        return [work(item) for item in todo]
    total, begun = torch.get_num_threads(), Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first question of a thread sets its number to the common one
        torch.set_num_threads(1)
        begun.wait()

    with ThreadPoolExecutor(count, initializer=begin) as pool:
        found = [pool.submit(work, item) for item in todo]
        begun.wait()
        torch.set_num_threads(total)  # which also is what threads begin with that others make
        return [one.result() for one in found]
