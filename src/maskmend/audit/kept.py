"""Looks kept as they were opened: a case is asked for several times, and unpacking its probabilities takes longest."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from maskmend.audit.look import Look
from maskmend.data.owner import scratch
from maskmend.machine import memory_gib

OF_MEMORY = 0.4  # of what is available: what is read back soon is still in the system's cache then
OF_DISK = 0.25  # of what is free
LIKELY_GIB = 4.0  # of memory available, where the system does not tell


@dataclass(frozen=True)
class Kept:
    """A folder of looks, for as long as nothing that they were made of changes.

    It holds what it can: where there is no room for a look, it is opened again.

    Args:
        folder: there already, and nobody else's.
        most_bytes: of one look; larger ones are not kept.
    """

    folder: Path
    most_bytes: int

    def read(self, case: str) -> Look | None:
        """The look of a case, None where it was not kept."""
        try:
            parts = load_file(self._path(case))
        except (OSError, SafetensorError):
            return None
        starts, stops, shape = parts["place"].tolist()
        box = tuple(slice(*ends) for ends in zip(starts, stops, strict=True))
        spacing_mm = tuple(parts["spacing_mm"].tolist())
        return Look(case, parts["probs"], parts["label"], parts.get("valid"), spacing_mm, box, tuple(shape))

    def write(self, look: Look) -> None:
        """Keep a look, if there is room for it."""
        if look.probs.nbytes > self.most_bytes:
            return
        place = [[one.start for one in look.box], [one.stop for one in look.box], look.shape]
        parts = {
            "probs": look.probs,
            "label": look.label,
            "place": np.array(place, np.int64),
            "spacing_mm": np.array(look.spacing_mm, np.float64),
        }
        if look.valid is not None:
            parts["valid"] = np.ascontiguousarray(look.valid)  # others are written as if they were
        path = self._path(look.case)
        half = path.with_suffix(".half")
        try:
            save_file(parts, half)
            os.replace(half, path)  # a process may be lost on the way
        except (OSError, SafetensorError):
            with suppress(OSError):
                half.unlink(missing_ok=True)

    def _path(self, case: str) -> Path:
        """A case's id may have any length, and is nobody's business in a folder for temporary files."""
        return self.folder / f"{hashlib.sha256(case.encode()).hexdigest()}.safetensors"


@contextmanager
def kept(place: Path, looks: int) -> Iterator[Kept | None]:
    """Keep looks in a hidden folder while this lasts; None where none can be made.

    Args:
        place: folder for it.
        looks: how many may be kept. All together they take a part of the memory and of the disk that are free.
    """
    memory = memory_gib()
    available = memory["available"] if memory else LIKELY_GIB
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch(place))
            room = min(OF_MEMORY * available * 2**30, OF_DISK * shutil.disk_usage(folder).free)
        except OSError:  # results will meet the same fault, and explain it
            yield None
        else:
            yield Kept(folder, int(room / max(looks, 1)))
