"""Cases that the tests of the flaws share: organs drawn from a seed, and plain shapes in millimetres."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest

from maskmend.data.phantom import phantom_case
from maskmend.noise import Annotation

SPACING_MM = {2: (0.7, 1.3), 3: (2.4, 0.8, 1.0)}


@functools.cache
def phantom(ndim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return phantom_case(
        np.random.default_rng([17, ndim, seed]), ndim, (72, 72) if ndim == 2 else (24, 32, 36)
    )


@pytest.fixture
def organ() -> Callable[..., Annotation]:
    """Annotation of a phantom with an organ (1), a core (2) and, if asked, an ignored strip (9)."""

    def make(ndim: int = 2, seed: int = 0, ignored: bool = False) -> Annotation:
        image, label = (array.copy() for array in phantom(ndim, seed))
        if ignored:
            half = label[..., : label.shape[-1] // 2]
            half[half == 1] = 9
        names = {"background": 0, "organ": 1, "core": 2}
        return Annotation(label, SPACING_MM[ndim], image, names=names, case=f"case{seed}")

    return make


@pytest.fixture
def ball() -> Callable[..., np.ndarray]:
    """A disc or ball (*S) uint8 of a radius in millimetres, in the middle of an image of a size in millimetres."""

    def make(radius_mm: float, size_mm: float, spacing_mm: tuple[float, ...]) -> np.ndarray:
        axes = [(np.arange(round(size_mm / s)) - (round(size_mm / s) - 1) / 2) * s for s in spacing_mm]
        squares = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
        return (squares <= radius_mm**2).astype(np.uint8)

    return make
