"""One process writes to a run folder at a time."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    _take(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(path: Path) -> None:
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid()), "start": _now()}
    for _ in range(3):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            _remove_if_stale(path)
            continue
        with os.fdopen(descriptor, "w") as file:
            json.dump(mine, file)
        return
    raise UsageError("another process took the lock", path, "wait for it, or use another folder")


def _remove_if_stale(path: Path) -> None:
    try:
        holder = json.loads(path.read_text())
        pid, host = int(holder["pid"]), holder["host"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        holder, pid, host = {}, 0, socket.gethostname()  # killed while it wrote the lock
    gone = host == socket.gethostname() and (
        pid == 0 or (not Path(f"/proc/{pid}").exists() and not _alive(pid))
    )
    reused = host == socket.gethostname() and holder.get("born") and _born(pid) != holder["born"]
    if not gone and not reused:
        fact = f"in use by process {pid} on {host} since {holder.get('start')}"
        raise UsageError(fact, path.parent, f"wait for it, or delete {path} if you know that it is gone")
    message(f"removing the stale lock of process {pid}, which is gone")
    path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _born(pid: int) -> str | None:
    """When the process started, as the kernel counts; tells a process from a later one with its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
