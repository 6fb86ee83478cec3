"""One process writes to a run folder at a time."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maskmend.data import owner
from maskmend.data.atomic import explained
from maskmend.errors import UsageError
from maskmend.progress import message

NAME = "LOCK"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a lock whose process is gone is taken over with a message.

    Raises:
        UsageError: another process holds it, with its pid, host and start.
    """
    path = folder / NAME
    with explained(path), _alone(folder):
        _refuse_or_clear(path)
        _write(path)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may have become read-only; a stale lock is recognised
            path.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no other process look at the lock while this one decides: two could take over one stale lock.

    The system's lock lasts for the decision only. It would not do for the whole run: worker processes inherit it
    and may outlive a killed run, and network drives often do not know it (then this does nothing).
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: Path) -> None:
    pid = os.getpid()
    facts = {"pid": pid, "host": socket.gethostname(), "born": owner.born(pid), "start": _now()}
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        raise UsageError(
            "another process took the lock", path, "wait for it, or use another folder"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        json.dump(facts, file)


def _refuse_or_clear(path: Path) -> None:
    holder = _holder(path)
    if holder is None:
        return
    pid, host = holder["pid"], holder["host"]
    if host != socket.gethostname() or (pid and owner.lives(pid, holder.get("born"))):
        fact = f"in use by process {pid} on {host} since {holder.get('start')}"
        raise UsageError(fact, path.parent, f"wait for it, or delete {path} if you know that it is gone")
    message(f"removing the stale lock of process {pid}, which is gone")
    path.unlink(missing_ok=True)


def _holder(path: Path) -> dict[str, Any] | None:
    """What the lock says of its process; pid 0 when that was killed while it wrote the lock."""
    try:
        holder = json.loads(path.read_text())
        return {**holder, "pid": int(holder["pid"]), "host": str(holder["host"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return {"pid": 0, "host": socket.gethostname()}


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
