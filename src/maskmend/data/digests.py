"""Digests of files, read in pieces: images and models may be large."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

from maskmend.errors import DataError

PIECE = 1 << 20


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


Digest = TypeVar("Digest", bound=_Digest)


def fed(digest: Digest, path: Path) -> Digest:
    """A digest of `hashlib`, fed with a file's content.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path) from error
    return digest
