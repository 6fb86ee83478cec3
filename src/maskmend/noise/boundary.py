"""Outlines drawn too wide, too tight, or with bites and bumps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from maskmend.errors import UsageError
from maskmend.noise import morphology
from maskmend.noise.base import Annotation, Choice, LabelNoise, RegionNoise
from maskmend.noise.draws import draw_range, draw_seed


@dataclass(frozen=True)
class _Radius(LabelNoise):
    """A radius drawn from a range.

    Args:
        radius_mm: smallest and largest radius of the ball, or half side of the box less half a voxel.
        box: move by a box (as kernels of odd side do) rather than by a ball.
        whole: draw whole numbers only, as recipes in pixels do.
    """

    radius_mm: Sequence[float] = (2.0, 5.0)
    box: bool = False
    whole: bool = False

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw the radius."""
        radius = draw_range(rng, self.radius_mm, "radius_mm")
        if self.whole:
            low, high = self.radius_mm
            radius = float(rng.integers(int(low), int(high) + 1))
        return {"transform": self.name, "radius_mm": radius} | ({"box": True} if self.box else {})

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """The radius."""
        return float(strength * choice["radius_mm"])


@dataclass(frozen=True)
class Dilate(_Radius):
    """Every outline too wide by one radius: the annotator who leaves a margin."""

    name = "dilate"

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Grow all classes, side by side or layered."""
        radius, label, spacing = strength * choice["radius_mm"], annotation.label, annotation.spacing_mm
        if choice.get("box"):
            return _box_grown(label, spacing, radius, annotation.layered)
        grow = morphology.grow_layers if annotation.layered else morphology.grow_all
        return grow(label, spacing, radius)


@dataclass(frozen=True)
class Erode(_Radius):
    """Every outline too tight by one radius. At least a share `keep` of each class stays, see `corrupt_label`."""

    name = "erode"

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Shrink all classes, side by side or layered."""
        radius, label, spacing = strength * choice["radius_mm"], annotation.label, annotation.spacing_mm
        if choice.get("box"):
            return _box_shrunk(label, spacing, radius, annotation.layered)
        shrink = morphology.shrink_layers if annotation.layered else morphology.shrink_all
        return shrink(label, spacing, radius)


def _sides(spacing_mm: Sequence[float], radius_mm: float) -> list[int]:
    return [2 * int(radius_mm / size + 1e-6) + 1 for size in spacing_mm]


def _box_grown(label: np.ndarray, spacing_mm: Sequence[float], radius_mm: float, layered: bool) -> np.ndarray:
    """Layered classes: the highest in the box wins, which is what a maximum is; else background only."""
    grown: np.ndarray = ndimage.maximum_filter(label, _sides(spacing_mm, radius_mm), mode="constant")
    return grown if layered else np.where(label > 0, label, grown)


def _box_shrunk(
    label: np.ndarray, spacing_mm: Sequence[float], radius_mm: float, layered: bool
) -> np.ndarray:
    """The image's edge is no border, as in `morphology`."""
    eroded: np.ndarray = ndimage.minimum_filter(label, _sides(spacing_mm, radius_mm), mode="nearest")
    return eroded if layered else np.where(eroded > 0, label, np.zeros((), label.dtype))


@dataclass(frozen=True)
class EdgeCircles(RegionNoise):
    """Discs (balls) centred on the outline, each added or cut away: an outline that wanders.

    Args:
        radius_mm: smallest and largest radius.
        every_mm: one circle for about this length of outline (in 3-D: its square of surface).
        whole: draw whole radii only.

    Example:
        >>> import numpy as np
        >>> from maskmend.noise.base import Annotation, flaw
        >>> label = np.zeros((40, 40), np.uint8); label[10:30, 10:30] = 1
        >>> truth = Annotation(label, (1.0, 1.0))
        >>> choice = EdgeCircles((2, 4)).choose(np.random.default_rng(0), truth)
        >>> int((flaw(truth, choice) != label).sum()) > 0
        True

    Source: the "edge-distorted" masks of Zhang et al., "Characterizing label errors", MICCAI 2020. Number and
    spread of the circles are ours.
    """

    name = "edge_circles"
    radius_mm: Sequence[float] = (2.0, 5.0)
    every_mm: float = 15.0
    whole: bool = False

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw the seed of the places; radii are drawn there."""
        draw_range(np.random.default_rng(0), self.radius_mm, "radius_mm")
        if self.every_mm <= 0:
            raise UsageError(f"{self.every_mm} must be above 0", "every_mm")
        facts = {"radius_mm": [float(r) for r in self.radius_mm], "every_mm": float(self.every_mm)}
        return {"transform": self.name, "seed": draw_seed(rng), "whole": self.whole} | facts

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """The largest radius."""
        return float(strength * choice["radius_mm"][1])

    @classmethod
    def flaw_region(
        cls,
        region: np.ndarray,
        spacing_mm: tuple[float, ...],
        choice: Mapping[str, Any],
        strength: float,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Pick places on the outline, then add or cut in turn, later ones over earlier ones."""
        result, edge = region.copy(), np.argwhere(region & ~ndimage.binary_erosion(region, border_value=1))
        if not len(edge):
            return result
        size = float(np.prod(spacing_mm) ** (1 - 1 / region.ndim))  # of outline per edge voxel, in mm or mm^2
        count = max(1, round(len(edge) * size / choice["every_mm"] ** (region.ndim - 1)))
        low, high = choice["radius_mm"]
        for _ in range(count):
            place, add = edge[rng.integers(len(edge))], rng.random() < 0.5
            radius = (
                float(rng.integers(int(low), int(high) + 1)) if choice["whole"] else rng.uniform(low, high)
            )
            _paint_ball(result, place, spacing_mm, strength * radius, bool(add))
        return result


def _paint_ball(
    region: np.ndarray, centre: np.ndarray, spacing_mm: Sequence[float], radius_mm: float, value: bool
) -> None:
    where, squares = [], []
    for axis, (at, size) in enumerate(zip(centre, spacing_mm, strict=True)):
        reach = int(radius_mm / size)
        low, high = max(0, at - reach), min(region.shape[axis], at + reach + 1)
        where.append(slice(low, high))
        squares.append(((np.arange(low, high) - at) * size) ** 2)
    distance = sum(np.meshgrid(*squares, indexing="ij"))
    region[tuple(where)][distance <= radius_mm**2 + 1e-6] = value
