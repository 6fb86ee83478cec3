"""Write results so that a crash, a full disk or a reader at the wrong moment never meets half a file."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from maskmend.data.formats import stem_of, suffix_of
from maskmend.data.owner import sweep, temporary_name
from maskmend.errors import REFUSED, ResourceError, UsageError, UserError
from maskmend.pseudonyms import clean_paths

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE = bytes(1 << 16)


def atomic_write(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` fill a temporary file beside `path`, then rename it into place.

    The old file stays intact until the new one is complete and on disk. The temporary file keeps the suffix
    (format libraries go by it), starts with a dot (so no layout ever lists it) and names its process (so that
    `owner.sweep` can tell one that a killed process left).

    Args:
        path: where the result belongs; missing parent folders are made.
        writer: gets the temporary path and writes the whole file there.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(stem_of(path), f".tmp{suffix_of(path) or path.suffix}"))
    try:
        with explained(path, probe=temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer(temporary)
            to_disk(temporary)
            os.replace(temporary, path)
            to_disk(path.parent)
    finally:
        with suppress(OSError):  # whatever it is, it must not hide what went wrong above
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with the same line ends on every system."""
    atomic_write(path, lambda temporary: temporary.write_bytes(clean_paths(text).encode()))


def to_disk(path: Path) -> None:
    """Flush a file, or a folder's entry table where the system allows it, so that a power cut keeps it."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in (*_FULL, errno.EIO):
            raise
    finally:  # some network drives do not know fsync: the rename alone must do
        os.close(handle)


def _files_to_disk(folder: Path) -> None:
    """Flush every file below a folder; many at a time, which a disk does about ten times faster than one by one."""
    walked = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    # What is linked was there before.
    written = [path for path in walked if not path.is_symlink() and path.stat().st_nlink == 1]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(to_disk, written))


@contextmanager
def atomic_folder(out: Path, check: Callable[[], object]) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well: half a result is never seen.

    What killed calls left beside `out` is deleted first. An earlier `out` is renamed away before it is deleted,
    so that it is there whole or not at all.

    Args:
        out: where the result belongs; missing parent folders are made.
        check: raises when `out` may not be replaced. Callers ask before they begin; it is asked again at the end,
            for another process may have made `out` meanwhile.

    Raises:
        ResourceError, UsageError: see `explained`; or what `check` raises.
    """
    out = out.resolve()
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent)
        folder, old = (out.with_name(temporary_name(out.name)) for _ in range(2))
        folder.mkdir()
    try:
        yield folder
        check()
        with explained(out):
            _files_to_disk(folder)
            if out.exists():
                out.rename(old)
            folder.rename(out)  # where nothing was replaced, a kill from here on leaves nothing behind
            to_disk(out.parent)
    finally:
        for left in (folder, old):
            if left.exists():
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def explained(path: Path, *, probe: Path | None = None, remedy: str = "") -> Iterator[None]:
    """Turn what a library raises when a file cannot be written into an error that the user can mend.

    Args:
        path: what is written.
        probe: the file in the making. Not every library says why it failed (NumPy: "8 requested and 4 written"),
            so a few more bytes are added here to learn whether the disk is full.
        remedy: for a full disk, in place of the usual one.

    Raises:
        ResourceError: the disk, a quota or the limit of a file's size is exhausted.
        UsageError: no permission, a read-only disk, a file where a folder should be.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _reason(error)
        if number is None and probe is not None:
            number = _refusal(probe)
        if number in _FULL:
            free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
            fact = f"the disk is full ({free:,} bytes free)"
            if number == errno.EFBIG:
                fact = "the file would be larger than this system allows (ulimit -f)"
            raise ResourceError(fact, path, remedy or "nothing was changed; make room") from error
        if number in REFUSED:
            fact = f"cannot be written: {os.strerror(number or 0)}"
            raise UsageError(fact, path, "choose another output folder") from error
        raise


def _reason(error: BaseException) -> int | None:
    """The number of the system's error behind what a library raised."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        if match := re.search(r"\(os error (\d+)\)", str(seen)):  # libraries written in Rust
            return int(match[1])
        seen = seen.__cause__ or seen.__context__
    return None


def _refusal(path: Path) -> int | None:
    """Why nothing can be added to a file, None when it can."""
    if not path.is_file():
        return None
    try:
        with path.open("ab", buffering=0) as file:
            return None if file.write(_PROBE) == len(_PROBE) else errno.ENOSPC
    except OSError as error:
        return error.errno
