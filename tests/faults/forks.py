"""Calls in a forked child, which may be killed, starved of memory or disk, or cut off, without harm to the tests."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_NEW_MOUNTS, _NEW_USER, _NEW_NETWORK = 0x00020000, 0x10000000, 0x40000000
_READ_ONLY, _RECURSIVE, _PRIVATE = 1, 1 << 14, 1 << 18
NOT_ALLOWED = 77
_ASSERTION = 78


class Fork:
    """A child that runs `function` and exits with what that returns (None: 0).

    Args:
        function: what it does.
        log: where what it prints goes, both streams.
    """

    def __init__(self, function: Callable[[], object], log: Path) -> None:
        self.log_file = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function)
        self._code: int | None = None

    def _run(self, function: Callable[[], object]) -> None:
        code = 70
        try:
            said = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for the life of the process
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            answer = function()
            code = answer if isinstance(answer, int) else 0
        except PermissionError:
            traceback.print_exc()
            code = NOT_ALLOWED
        except AssertionError:
            traceback.print_exc()
            code = _ASSERTION
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float = 300) -> int:
        """Its exit code; -9 when SIGKILL ended it."""
        deadline = time.monotonic() + seconds
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(self.said())
            else:
                time.sleep(0.01)
        return self._code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        if self._code is None:
            os.kill(self.pid, number)

    def said(self) -> str:
        """All it printed so far."""
        return self.log_file.read_text() if self.log_file.exists() else ""


def mount(place: str, size: str = "", *, read_only: bool = False) -> None:
    """Give this process (a forked child) a disk of its own at `place`; others do not see it.

    Args:
        place: an existing folder.
        size: of an empty disk in memory, e.g. "2m"; "" to show the folder itself, for `read_only`.
        read_only: nothing can be written there.

    Raises:
        PermissionError: the system does not allow it.
    """
    flags = _NEW_MOUNTS | (0 if os.geteuid() == 0 else _NEW_USER)
    _call("unshare", flags)
    _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    where = place.encode()
    if size:
        _call("mount", b"none", where, b"tmpfs", 0, f"size={size}".encode())
    else:
        _call("mount", where, where, None, 4096, None)  # bind
    if read_only:
        _call("mount", None, where, None, 32 | _READ_ONLY | (0 if size else 4096), None)  # remount


def cut_off() -> None:
    """Take this process's network away.

    Raises:
        PermissionError: the system does not allow it.
    """
    _call("unshare", _NEW_NETWORK | (0 if os.geteuid() == 0 else _NEW_USER))


def _call(name: str, *values: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*values) != 0:
        raise PermissionError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
