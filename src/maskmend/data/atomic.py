"""Write results so that a crash, a full disk or a reader at the wrong moment never meets half a file."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from maskmend.data.formats import stem_of, suffix_of
from maskmend.errors import ResourceError, UsageError


def atomic_write(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` fill a temporary file beside `path`, then rename it into place.

    The old file stays intact until the new one is complete and on disk. The temporary file keeps the suffix
    (format libraries go by it) and starts with a dot (so no layout ever lists it).

    Args:
        path: where the result belongs; missing parent folders are made.
        writer: gets the temporary path and writes the whole file there.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written to.
    """
    path = Path(path)
    suffix = suffix_of(path) or path.suffix
    temporary = path.with_name(f".{stem_of(path)[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(temporary)
        _to_disk(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with the same line ends on every system."""
    atomic_write(path, lambda temporary: temporary.write_bytes(text.encode()))


def _to_disk(path: Path) -> None:
    """Flush a file, or a folder's entry table where the system allows it, so that a power cut keeps it."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    finally:  # some network drives do not know fsync: the rename alone must do
        os.close(handle)


def _explained(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        return ResourceError(
            f"the disk is full ({free:,} bytes free)", path, "nothing was changed; make room"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return UsageError(f"cannot be written: {error.strerror}", path, "choose another output folder")
    return error
