"""Probabilities of judged cases on disk: half precision, and only where anything but background is possible."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskmend.boxes import bounding_box
from maskmend.data.atomic import atomic_write

SURE = 0.01  # background at least this likely to be wrong is kept


class Store:
    """A folder of class probabilities by case, each on its image's own grid.

    What is surely background is not stored, so a volume takes about the space of its foreground's box.

    Args:
        folder: where the files lie; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, case: str) -> Path:
        """The file of a case."""
        return self.folder / f"{case}.npz"

    def has(self, case: str) -> bool:
        """Whether the case was judged already."""
        return self.path(case).is_file()

    def write(self, case: str, probs: np.ndarray) -> None:
        """Store (K, *S) probabilities, background first; atomically."""
        box = bounding_box(probs[0] < 1 - SURE)
        inside = (slice(1, None), *box)
        kept = np.asarray(probs[inside], np.float16)
        shape, ends = np.array(probs.shape), np.array([(one.start, one.stop) for one in box])
        atomic_write(
            self.path(case), lambda temporary: np.savez(temporary, shape=shape, box=ends, probs=kept)
        )

    def read(self, case: str) -> np.ndarray:
        """(K, *S) float32; sums to 1 over K."""
        with np.load(self.path(case), allow_pickle=False) as file:
            inside = (slice(1, None), *(slice(*ends) for ends in file["box"]))
            probs = np.zeros(tuple(file["shape"]), np.float32)
            probs[inside] = file["probs"]
        np.clip(1 - probs[1:].sum(axis=0), 0, 1, out=probs[0])
        return probs
