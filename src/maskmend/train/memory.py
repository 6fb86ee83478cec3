"""What a method remembers of each training case between epochs: overlays in the run folder, by version."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from torch import Tensor

IN_RAM = 1 << 30  # bytes up to which the current version is also held in memory


class Memory:
    """Soft maps (K, *P) per case number, stored as float16; a version is the step at which it was made.

    Versions make a resume exact: a state names the version it was trained with, and newer ones are dropped.

    Args:
        folder: where versions lie; created when the first one is begun.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.version = folder, None  # type: Path, int | None
        self._held: dict[int, np.ndarray] = {}
        self._bytes = 0

    def __call__(self, index: int) -> np.ndarray | None:
        """The map of one case, float16 (K, *P), or None before the first revision."""
        if self.version is None:
            return None
        if index in self._held:
            return self._held[index]
        found = np.load(self._path(self.version, index), mmap_mode="r")
        if self._bytes + found.nbytes <= IN_RAM:
            self._held[index] = found = np.array(found)
            self._bytes += found.nbytes
        return found

    def write(self, version: int, index: int, probs: Tensor) -> None:
        """Store one case of a version in the making; it is served only after `switch`."""
        path = self._path(version, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, probs.half().cpu().numpy())

    def switch(self, version: int | None) -> None:
        """Serve this version from now on."""
        self.version, self._held, self._bytes = version, {}, 0

    def drop(self, keep: set[int]) -> None:
        """Delete every version but the current one and those in `keep`."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if int(path.name) not in keep | {self.version}:
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, version: int, index: int) -> Path:
        return self.folder / str(version) / f"{index}.npy"
