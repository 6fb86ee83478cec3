"""Outlines bent smoothly: right on average, wrong in places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from maskmend.boxes import bounding_box
from maskmend.errors import UsageError
from maskmend.noise.base import Annotation, Choice, LabelNoise
from maskmend.noise.draws import draw_range, draw_seed


@dataclass(frozen=True)
class Elastic(LabelNoise):
    """Move the knots of a coarse grid at random, and everything between by a cubic spline.

    Args:
        sigma_mm: smallest and largest standard deviation of a knot's displacement along each axis.
        knots: along each axis, at least 2.

    Example:
        >>> import numpy as np
        >>> from maskmend.noise.base import Annotation, flaw
        >>> label = np.zeros((40, 40), np.uint8); label[10:30, 10:30] = 1
        >>> truth = Annotation(label, (1.0, 1.0))
        >>> choice = Elastic((2, 2)).choose(np.random.default_rng(0), truth)
        >>> 0 < int((flaw(truth, choice) != label).sum()) < 200
        True

    Source: the 5 x 5 grids of RMD (see `docs/noise.md`). Ours: the grid spans the box of the foreground, not
    the image, so that a small organ in a large image is bent and not only shifted.
    """

    name = "elastic"
    sigma_mm: Sequence[float] = (1.0, 4.0)
    knots: int = 5

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw the size of the displacements and the seed of their directions."""
        if self.knots < 2:
            raise UsageError(f"{self.knots} must be at least 2", "knots")
        sigma = draw_range(rng, self.sigma_mm, "sigma_mm")
        return {"transform": self.name, "seed": draw_seed(rng), "sigma_mm": sigma, "knots": self.knots}

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """Five deviations."""
        return float(5 * strength * choice["sigma_mm"])

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Sample the label at displaced places, nearest neighbour: no class is invented."""
        label, ndim, knots = annotation.label, annotation.ndim, choice["knots"]
        box = bounding_box(label > 0)
        weights = [_spline(n, part, knots) for n, part in zip(label.shape, box, strict=True)]
        rng = np.random.default_rng(choice["seed"])
        places = np.indices(label.shape, dtype=np.float32)
        for axis, size in enumerate(annotation.spacing_mm):
            field = rng.standard_normal((knots,) * ndim) * strength * choice["sigma_mm"] / size
            for across, weight in enumerate(weights):
                field = np.moveaxis(np.tensordot(weight, field, (1, across)), 0, across)
            places[axis] += field
        return np.asarray(ndimage.map_coordinates(label, places, order=0, mode="constant", cval=0))


def _spline(size: int, box: slice, knots: int) -> np.ndarray:
    """Matrix (size, knots): cubic spline from knots over the box to all voxels, constant beyond it."""
    along = (np.arange(size) - box.start) / max(box.stop - 1 - box.start, 1) * (knots - 1)
    spline = make_interp_spline(np.arange(knots), np.eye(knots), k=min(3, knots - 1))
    weights: np.ndarray = spline(np.clip(along, 0, knots - 1))
    return weights
