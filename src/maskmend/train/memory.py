"""What a method remembers of each training case between epochs: overlays in the run folder, by version."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from maskmend.data.atomic import explained, to_disk

IN_RAM = 1 << 30  # bytes up to which the version being made is also held in memory


class Memory:
    """Soft maps (K, *P) per case number, float16; a version is named by the step at which it was made.

    Versions make a resume exact: a state names the version it was trained with, and newer ones are dropped.
    A version is one file per process, because a file per case and epoch is slow for thousands of small cases.

    Args:
        folder: where versions lie; created when the first one is begun.
        part: number of this process.
    """

    def __init__(self, folder: Path, part: int = 0) -> None:
        self.folder, self.part = folder, part
        self.version: int | None = None
        self._maps: dict[int, np.ndarray] = {}
        self._making: _Writer | None = None
        self._unsettled: Path | None = None  # written, perhaps not on disk yet

    def __call__(self, index: int) -> np.ndarray | None:
        """The map of one case, float16 (K, *P), or None before the first revision."""
        return self._maps.get(index)

    def write(self, version: int, index: int, probs: Tensor) -> None:
        """Store one case of a version in the making; it is served only after `switch`."""
        if self._making is None or self._making.version != version:
            self._making = _Writer(self.folder, version, self.part)
        self._making.add(index, probs.half().cpu().numpy())

    def finish(self) -> None:
        """Complete this process's part of the version in the making."""
        if self._making is not None:
            self._making.close()
            self._unsettled = self._making.path

    def settle(self) -> None:
        """Flush this process's part of the served version, before a state that a power cut spares refers to it."""
        if self._unsettled is not None:
            for suffix in (".f16", ".json"):
                to_disk(self._unsettled.with_suffix(suffix))
            to_disk(self._unsettled.parent)
            self._unsettled = None

    def switch(self, version: int | None) -> None:
        """Serve this version, whose parts are all complete, from now on."""
        self.version, self._maps = version, {}
        if version is None:
            return
        held = self._making.held if self._making and self._making.version == version else {}
        for table in sorted((self.folder / str(version)).glob("*.json")):
            self._open(table)
        self._maps |= held
        self._making = None

    def drop(self, keep: set[int]) -> None:
        """Delete every version but the current one and those in `keep`."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if int(path.name) not in keep | {self.version}:
                shutil.rmtree(path, ignore_errors=True)

    def _open(self, table: Path) -> None:
        entries = json.loads(table.read_text())
        if not entries:
            return
        data: np.ndarray = np.memmap(table.with_suffix(".f16"), np.float16, mode="r")
        if data.nbytes <= IN_RAM:
            data = np.array(data)
        for index, start, shape in entries:
            self._maps[index] = data[start : start + math.prod(shape)].reshape(shape)


class _Writer:
    """One process's part of one version: a flat file of numbers and a table of where each case begins."""

    def __init__(self, folder: Path, version: int, part: int) -> None:
        self.version, self.path = version, folder / str(version) / f"{part}.f16"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.held: dict[int, np.ndarray] = {}
        self._file: BinaryIO = self.path.open("wb")
        self._table: list[tuple[int, int, tuple[int, ...]]] = []
        self._length = 0

    def add(self, index: int, array: np.ndarray) -> None:
        with explained(self.path):
            self._file.write(np.ascontiguousarray(array).tobytes())
        self._table.append((index, self._length, array.shape))
        self._length += array.size
        if 2 * self._length <= IN_RAM:
            self.held[index] = array

    def close(self) -> None:
        with explained(self.path):
            self._file.close()
            self.path.with_suffix(".json").write_text(json.dumps(self._table))
