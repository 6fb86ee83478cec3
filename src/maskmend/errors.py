"""Errors that are the user's to solve: what happened, where, and what to do. Each kind is an exit code."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable

REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip
"""What the system answers where another place or other rights would do."""

_hide: Callable[[str], str] | None = None


def hide_with(cleaner: Callable[[str], str] | None) -> None:
    """Let `cleaner` take names out of every text that is shown (`maskmend.pseudonyms`); None: show all."""
    global _hide
    _hide = cleaner


def shown(text: str) -> str:
    """A text as it may be shown."""
    return text if _hide is None else _hide(text)


class UserError(Exception):
    """A fault that the user can mend; shown without a traceback.

    Args:
        what: the fact, in one sentence, with the figures that show it.
        where: the case, file or key it is about.
        remedy: what to do next, if possible a line to paste.
    """

    exit_code = 2
    kind = "error"

    def __init__(self, what: str, where: object = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, None if where is None else str(where), remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return shown(f"{head}\n  {self.remedy}" if self.remedy else head)

    def __reduce__(self) -> tuple[object, ...]:  # crosses process borders (data workers, DDP)
        return type(self), (self.what, self.where, self.remedy)


class UsageError(UserError):
    """A wrong command line, configuration or combination of inputs (exit code 2)."""


class DataError(UserError):
    """The data set or a file in it is at fault (exit code 3)."""

    exit_code = 3
    kind = "data error"


class ResourceError(UserError):
    """Memory, disk or a device does not suffice (exit code 4)."""

    exit_code = 4
    kind = "resource error"


class Interrupted(UserError):
    """Stopped on request after saving; the remedy is the command that resumes (exit code 130)."""

    exit_code = 130
    kind = "interrupted"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like `name`, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(kind: str, name: str, choices: Iterable[str], where: object = None) -> UsageError:
    """The one error for a misspelt name: says what was meant, or lists what there is."""
    known = sorted(choices)
    guess = nearest(name, known)
    remedy = f"did you mean {guess!r}?" if guess else f"one of: {', '.join(known)}"
    return UsageError(f"unknown {kind} {name!r}", where, remedy)
