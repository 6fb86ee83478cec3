"""Progress and messages on stderr: a bar on a terminal, plain lines at intervals in a log file.

stdout belongs to data, so nothing here ever writes to it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from maskmend.errors import shown

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")

LINE_EVERY_S = 15.0
"""Seconds between two plain lines when stderr is not a terminal."""

_live: list[Console] = []  # the console of the bar on screen, so that messages appear above it
_quiet = False


class Bar(Protocol):
    """What `bar` hands out."""

    def update(self, advance: int = 1, **figures: float | str) -> None:
        """Move on by `advance` and show `figures`, e.g. `loss=0.31`."""


def message(text: str) -> None:
    """Write one message to stderr, above a bar if one is on screen."""
    if _quiet:
        return
    text = shown(text)
    if _live:
        _live[-1].print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


def quiet(on: bool = True) -> None:
    """Silence messages and bars (child processes of a distributed run)."""
    global _quiet
    _quiet = on


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable` while showing how far along it is.

    Args:
        iterable: anything; its length is used when `total` is None.
        description: what is being done, e.g. "reading".
        total: number of items, None when it is not known.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with bar(description, total) as shown:
        for item in iterable:
            yield item
            shown.update()


@contextmanager
def bar(description: str, total: int | None, *, start: int = 0) -> Iterator[Bar]:
    """A bar to move by hand: `with bar("training", 2000) as b: b.update(1, loss=0.3)`.

    Args:
        description: what is being done.
        total: number of steps, None when it is not known.
        start: steps that were done before (a resumed run); they do not count for the rate.
    """
    if _quiet:
        yield _Silent()
    elif sys.stderr.isatty() and not _live:
        with _terminal(description, total, start) as shown:
            yield shown
    else:
        lines = _Lines(description, total, start)
        yield lines
        lines.close()


@contextmanager
def counter(description: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) that shows a bar; for functions that take `progress`."""
    with ExitStack() as stack:
        shown: list[Bar] = []
        before = 0

        def moved(done: int, total: int) -> None:
            nonlocal before
            if not shown:
                shown.append(stack.enter_context(bar(description, total)))
            shown[0].update(done - before)
            before = done

        yield moved


class _Silent:
    def update(self, advance: int = 1, **figures: float | str) -> None:
        pass


class _Lines:
    """Plain lines, for log files and for a bar inside a bar."""

    def __init__(self, description: str, total: int | None, start: int) -> None:
        self.description, self.total, self.start, self.done = description, total, start, start
        self.began = self.shown = time.monotonic()
        self.told = -1  # how many were done when the last line was written
        self.figures: dict[str, float | str] = {}

    def update(self, advance: int = 1, **figures: float | str) -> None:
        self.done += advance
        self.figures = figures or self.figures
        if time.monotonic() - self.shown >= LINE_EVERY_S:
            self.show()

    def show(self) -> None:
        now = time.monotonic()
        self.shown, self.told = now, self.done
        rate = (self.done - self.start) / max(now - self.began, 1e-9)
        of = f"/{self.total} ({self.done / self.total:.0%})" if self.total else ""
        left = f", {clock((self.total - self.done) / rate)} left" if self.total and rate > 0 else ""
        message(f"{self.description}: {self.done}{of}, {rate:.3g}/s{left}{_figures(self.figures, ', ')}")

    def close(self) -> None:
        """A last line, but only for work long enough to have shown one before, and no line twice."""
        if time.monotonic() - self.began >= LINE_EVERY_S and self.told != self.done:
            self.show()


class _Terminal:
    def __init__(self, progress: object, task: object) -> None:
        self.progress, self.task = progress, task

    def update(self, advance: int = 1, **figures: float | str) -> None:
        fields = {"figures": _figures(figures, "  ")} if figures else {}
        self.progress.update(self.task, advance=advance, **fields)  # type: ignore[attr-defined]


@contextmanager
def _terminal(description: str, total: int | None, start: int) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Task as RichTask
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.3g}/s" if speed else "")

    console = Console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    # Figures get the room that is left, and are cut rather than squeeze the others.
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    figures = TextColumn("{task.fields[figures]}", markup=False, table_column=rest)
    columns = (text, BarColumn(24), MofNCompleteColumn(), Rate(), TimeRemainingColumn(), figures)
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task(description, total=total, figures="", completed=start)
        _live.append(console)
        try:
            yield _Terminal(progress, task)
        finally:
            _live.remove(console)


def _figures(figures: dict[str, float | str], between: str) -> str:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
    return "".join(between + text for text in shown)


def clock(seconds: float) -> str:
    """Seconds as 45 s, 3:20 or 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
