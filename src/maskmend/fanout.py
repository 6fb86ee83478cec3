"""The same work for many cases, spread over processes: results in order, the caller's own faults and Ctrl-C kept."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

from maskmend import progress, pseudonyms
from maskmend.machine import memory_gib, usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_PER_CHUNK = 8
CHUNKS = 12  # for each process, so that none ends long before the others
AHEAD = 3  # chunks for each process that are handed out before the first is asked for
OF_MEMORY = 0.7  # of what is available, for all processes together
WORTH_S = 6.0  # of work; starting processes takes two to three
LOADED_GIB = 0.35  # what a process holds before its first case
DRAWN_WITH = (
    "PIL.ImageFont",
    "PIL.ImageOps",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "matplotlib.colors",
)
"""What reading and drawing pictures loads when it begins: once for `prepare`, else in every process of every call."""
_SAFE_PATH, _CAN_BE_SAFE = "PYTHONSAFEPATH", sys.version_info >= (3, 11)


class Mapper(Protocol):
    """Does the same work for each item, and gives the results in order."""

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        """`map`, perhaps in other processes; then `work` must be picklable, and what it changes stays there."""


def in_turn(work: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
    """One after the other in this process."""
    return map(work, items)


def spread(processes: int) -> Mapper:
    """A mapper over so many processes; with one, in this process.

    Processes are started for each call, from a server that has loaded what this process has (on Windows each loads it
    anew). Scripts that use it need `if __name__ == "__main__":`, as all that start processes do.
    """
    if processes <= 1:
        return in_turn

    def over(work: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        return in_turn(work, items) if len(items) < 2 else _apart(work, items, min(processes, len(items)))

    return over


def most_processes(seconds: float, case_gib: float) -> int:
    """As many as there are cores to use, fewer where memory does not hold so many cases; one for little work.

    Args:
        seconds: about how long one process would take.
        case_gib: memory that the work needs for the largest case.
    """
    if seconds < WORTH_S:
        return 1
    memory = memory_gib()
    if memory is None:
        return usable_cores()
    fit = int(OF_MEMORY * memory["available"] / (LOADED_GIB + case_gib))
    return max(1, min(usable_cores(), fit))


def _apart(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    size = min(max(1, len(items) // (CHUNKS * processes)), MOST_PER_CHUNK)
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    told = pickle.dumps((work, pseudonyms.active()))
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, mp_context=_context(), initializer=_begin, initargs=(told,))
    done = 0
    try:
        left = iter(chunks)
        waiting = deque(pool.submit(_do, chunk) for chunk in islice(left, AHEAD * processes))
        while waiting:
            for result in waiting.popleft().result():
                done += 1
                yield result
            waiting.extend(pool.submit(_do, chunk) for chunk in islice(left, 1))
    except BrokenProcessPool:
        progress.message("a worker process was lost (killed, or out of memory); going on without workers")
        yield from map(work, items[done:])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # all is done, or nobody wants the rest: Ctrl-C does not wait for it
            child.join()


def prepare(*modules: str) -> None:
    """Begin to load what the processes will need while this one does other things; for use early in a program."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    from multiprocessing import forkserver

    # The server would look for modules in the folder where it is started, where a file of the user's may have the name
    # of one. Before Python 3.11 it cannot be told not to, so it loads nothing, and each process loads what it needs.
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules) if _CAN_BE_SAFE else [])
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


def _context() -> Any:
    """Never a fork of this process: a forked child of a process with threads (torch) can hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    prepare(*sorted(name for name in sys.modules if name.startswith("maskmend.") and "__" not in name))
    return multiprocessing.get_context("forkserver")


# ---- in the processes --------------------------------------------------------------------------------

_work: Callable[[Any], Any] | None = None


def _begin(told: bytes) -> None:
    """Tensors in `told` come as bytes, not through shared memory, of which containers have little."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    progress.quiet()
    _work, names = pickle.loads(told)
    pseudonyms.adopt(names)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A pool's processes wait for work for ever when the first one is killed: they hold the queue open themselves."""
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _do(chunk: Sequence[Any]) -> list[Any]:
    assert _work is not None
    return [_work(item) for item in chunk]
