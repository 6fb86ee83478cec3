"""How a command ends: its exit code, and what the user is told when it fails."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from maskmend.errors import REFUSED, Interrupted, ResourceError, UsageError, UserError
from maskmend.progress import message
from maskmend.pseudonyms import stop

_SMALLER = "smaller train.batch=, train.patch= or predict.batch=; `maskmend doctor` shows what there is"
_ROOM = "free some space, then try again"
_SCARCE = {
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.ENOMEM: _SMALLER, errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer workers",
    errno.EIO: "the disk or network drive gave an error: check it, then try again",
    errno.ESTALE: "the network drive was lost: mount it again, then try again",
}  # fmt: skip


def ended(command: Callable[[], int], again: str = "the same command begins anew") -> int:
    """Run a command and return its exit code; whatever it raises becomes a message on stderr and a code.

    Args:
        command: returns its exit code, with SIGTERM treated as Ctrl-C.
        again: what to do after a stop of which the command itself does not tell.
    """
    try:
        with _terminable():
            code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `maskmend check ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        return _told(error)
    except (KeyboardInterrupt, typer.Abort):
        return _told(Interrupted("stopped", None, again))
    except MemoryError as error:
        return _told(ResourceError(f"not enough memory {error}".strip(), None, _SMALLER))
    except Exception as error:
        return _told(wrong) if (wrong := _known(error)) else _bug()
    finally:
        stop()


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM, by which clusters end a job, as Ctrl-C: every verb tidies up and says how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _known(error: Exception) -> UserError | None:
    """The user's side of errors that other libraries raise, None for a bug of ours."""
    if hasattr(error, "format_message"):  # click: unknown option, missing argument
        return UsageError(str(error.format_message()), None, _help_hint(error))
    if isinstance(error, OSError) and error.errno in _SCARCE:
        return ResourceError(error.strerror or "too little room", error.filename, _SCARCE[error.errno])
    if isinstance(error, OSError) and error.errno in REFUSED:
        reason = "no permission" if isinstance(error, PermissionError) else error.strerror or "cannot be used"
        return UsageError(reason, error.filename, "choose another place or change its rights")
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # PyTorch, in main memory
        wanted = re.search(r"tried to allocate (\d+) bytes", str(error))
        size = f"; {int(wanted[1]):,} bytes were asked for at once" if wanted else ""
        return ResourceError(f"not enough memory{size}", None, _SMALLER)
    if type(error).__name__ == "OutOfMemoryError":
        return ResourceError(str(error).splitlines()[0], "GPU", _SMALLER)
    return None


def _help_hint(error: Any) -> str:
    verb = getattr(getattr(error, "ctx", None), "command_path", None) or "maskmend"
    return f"see `{verb} --help`"


def _told(error: UserError) -> int:
    message(f"maskmend: {error.kind}: {error}")
    return error.exit_code


def _bug() -> int:
    message(traceback.format_exc().rstrip())
    message(
        "maskmend: this is a bug in maskmend. Please report the lines above with `maskmend doctor --json`."
    )
    return 1
