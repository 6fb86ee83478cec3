"""Which process made a temporary file, and whether it still lives: what the dead left can be cleared away."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

_FOREIGN_STALE_S = 24 * 3600  # processes of another machine cannot be asked whether they live
_NAME = re.compile(r"\.(?:.+\.)?(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-(?P<born>\d+)-[0-9a-f]{8}(?:\.tmp.*)?")
_SCRATCH = "maskmend"
_LONGEST_STEM = 60  # bytes; file systems allow 255 for a whole name


def temporary_name(stem: str, suffix: str = "") -> str:
    """A name that no other process or call gives, with its owner in it.

    Args:
        stem: of the file in the making; shortened when long.
        suffix: "" for a folder; ".tmp" and more for a file (format libraries go by the end of a name).
    """
    short = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
    pid = os.getpid()
    return f".{short}.{_place()}-{pid}-{born(pid) or 0}-{secrets.token_hex(4)}{suffix}"


def sweep(*folders: Path) -> None:
    """Delete what processes that are gone left half-made in these folders; what living ones make stays."""
    for folder in folders:
        remove(path for path in folder.glob(".*") if left_behind(path))


@contextmanager
def scratch(place: Path | None = None) -> Iterator[Path]:
    """An empty folder in this place, or in the system's temporary one; what killed processes left there goes too."""
    place = place or Path(tempfile.gettempdir())
    remove(path for path in place.glob(f".{_SCRATCH}.*") if left_behind(path))
    folder = place / temporary_name(_SCRATCH)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove(paths: Iterable[Path]) -> None:
    """Delete files and folders as far as they may be deleted; another process may be doing the same."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # of another user, in a folder that is everyone's
                path.unlink(missing_ok=True)


def left_behind(path: Path) -> bool:
    """Whether this is a temporary file or folder of ours whose process is gone.

    That of another machine (or container) counts as left behind after a day.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return False
    if match["place"] == _place():
        return not lives(int(match["pid"]), match["born"])
    try:
        return time.time() - path.stat().st_mtime > _FOREIGN_STALE_S
    except OSError:  # just gone
        return False


def lives(pid: int, started: str | None) -> bool:
    """Whether the process of this number is still there.

    Args:
        pid: its number.
        started: what `born` said of it; tells it from a later process of the same number.
    """
    try:
        state, now = _status(pid)
    except OSError:  # no such process, or a system without /proc, or one that hides others' processes
        return _answers(pid)
    return state not in ("Z", "X") and started in (None, "0", now)


def born(pid: int) -> str | None:
    """When a process started, as the kernel counts; None where that is not known."""
    try:
        return _status(pid)[1]
    except OSError:
        return None


def _status(pid: int) -> tuple[str, str]:
    """State (Z: over, not yet fetched by its parent) and start of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return fields[0], fields[19]


def _answers(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # type: ignore[attr-defined]
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)  # type: ignore[attr-defined]
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@lru_cache(1)
def _place() -> str:
    """Stands for this machine, and within it for the container whose process numbers these are."""
    try:
        numbers = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        numbers = ""
    return hashlib.blake2b(f"{socket.gethostname()} {numbers}".encode(), digest_size=4).hexdigest()
