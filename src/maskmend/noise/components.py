"""Whole pieces that are missed, made up, or given the wrong name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from maskmend.errors import UsageError
from maskmend.noise.base import Annotation, Choice, LabelNoise, RegionNoise
from maskmend.noise.boundary import _paint_ball
from maskmend.noise.draws import at_least, draw_count, draw_range, draw_seed


def _checked(probability: float) -> float:
    if not 0 <= probability <= 1:
        raise UsageError(f"{probability} is not in [0, 1]", "probability")
    return float(probability)


def _components(label: np.ndarray, value: int) -> tuple[np.ndarray, int]:
    """Numbered connected parts of a class (*S), neighbours over corners included."""
    numbered, count = ndimage.label(label == value, np.ones((3,) * label.ndim))
    return numbered, int(count)


def _picked(seed: int, value: int, count: int, probability: float) -> np.ndarray:
    """Which components (1 ... count) are hit; a higher probability hits those of a lower one too."""
    drawn: np.ndarray = np.random.default_rng([seed, value]).random(count)
    return 1 + np.flatnonzero(drawn < probability)


@dataclass(frozen=True)
class DropComponents(LabelNoise):
    """Miss lesions: each connected component of each class is dropped with a probability.

    Args:
        probability: in [0, 1].
    """

    name = "drop"
    smooth = False
    may_erase = True
    probability: float = 0.3

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw the seed that decides for each component."""
        return {"transform": self.name, "seed": draw_seed(rng), "probability": _checked(self.probability)}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """What is dropped becomes background, or in layers what lies below: the nearest lower class."""
        label, result = annotation.label, np.array(annotation.label)
        for value in annotation.classes:
            numbered, count = _components(label, value)
            picked = _picked(choice["seed"], value, count, strength * choice["probability"])
            if not annotation.layered:
                result[np.isin(numbered, picked)] = 0
            for component in picked if annotation.layered else ():
                gone = numbered == component
                result[gone] = _below(label, value, gone)
        return result


def _below(label: np.ndarray, value: int, gone: np.ndarray) -> int:
    """The class that shows where a component is dropped: the lower one that it mostly lies on, else background."""
    beside = label[ndimage.binary_dilation(gone) & ~gone]
    lower = beside[(beside > 0) & (beside < value)]
    return int(np.bincount(lower).argmax()) if lower.size > beside.size / 2 else 0


@dataclass(frozen=True)
class InventComponents(LabelNoise):
    """See lesions that are not there: blobs of a present class, away from the foreground.

    Args:
        count: smallest and largest number of blobs.
        radius_mm: smallest and largest radius.
        gap_mm: least distance between a blob's centre and the foreground; where the image has no such
            place the blob is left out.
    """

    name = "invent"
    count: Sequence[int] = (1, 3)
    radius_mm: Sequence[float] = (2.0, 6.0)
    gap_mm: float = 8.0

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw number, radii, and the seed of the places."""
        number = draw_count(rng, self.count, "count")
        radii = [draw_range(rng, self.radius_mm, "radius_mm") for _ in range(number)]
        gap = at_least(self.gap_mm, 0, "gap_mm")
        return {"transform": self.name, "seed": draw_seed(rng), "radii_mm": radii, "gap_mm": gap}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Paint on background only."""
        label, spacing = annotation.label, np.asarray(annotation.spacing_mm)
        result, drawn = np.array(label), np.argwhere(label > 0) * spacing
        for number, radius in enumerate(choice["radii_mm"]):
            rng = np.random.default_rng([choice["seed"], number])
            value = annotation.classes[rng.integers(len(annotation.classes))]
            centre = _free_place(rng, label.shape, spacing, drawn, choice["gap_mm"])
            if centre is not None:
                blob = _blob(rng, label.shape, centre, annotation.spacing_mm, strength * radius)
                result[blob & (label == 0)] = value
        return result


def _free_place(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray, drawn: np.ndarray, gap_mm: float
) -> np.ndarray | None:
    for _ in range(40):
        place = rng.integers(shape)
        if (((drawn - place * spacing) ** 2).sum(1) >= gap_mm**2).all():
            return place
    return None


def _blob(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    centre: np.ndarray,
    spacing_mm: tuple[float, ...],
    radius_mm: float,
) -> np.ndarray:
    """Three overlapping balls (*S) bool: no two blobs look alike."""
    blob = np.zeros(shape, bool)
    for _ in range(3):
        offset = rng.uniform(-0.6, 0.6, len(shape)) * radius_mm / np.asarray(spacing_mm)
        place = np.clip(np.round(centre + offset), 0, np.asarray(shape) - 1).astype(int)
        _paint_ball(blob, place, spacing_mm, radius_mm * rng.uniform(0.5, 0.8), True)
    return blob


@dataclass(frozen=True)
class SwapClasses(LabelNoise):
    """Give components the name of another class, each with a probability.

    Args:
        probability: in [0, 1].

    Nothing happens where the data set has one class; its flaw would be `drop`.
    """

    name = "swap"
    smooth = False
    may_erase = True
    probability: float = 0.2

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw the seed, and record which classes there are."""
        known = sorted({v for v in annotation.names.values() if v > 0} | set(annotation.classes))
        choice = {"transform": self.name, "seed": draw_seed(rng), "classes": known}
        return choice | {"probability": _checked(self.probability)}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Rename; a component keeps its shape."""
        label, result = annotation.label, np.array(annotation.label)
        for value in annotation.classes:
            others = [known for known in choice["classes"] if known != value]
            numbered, count = _components(label, value)
            names = np.random.default_rng([choice["seed"], value, 1]).integers(
                max(len(others), 1), size=count
            )
            hit = _picked(choice["seed"], value, count, strength * choice["probability"])
            for component in hit if others else ():
                result[numbered == component] = others[names[component - 1]]
        return result


@dataclass(frozen=True)
class Fracture(RegionNoise):
    """Broken lines: straight gaps of background across the structure.

    Args:
        cuts: smallest and largest number of gaps.
        width_mm: smallest and largest width.

    Source: the "wrong" annotator of Zhang et al., "Disentangling human error from ground truth", NeurIPS 2020.
    """

    name = "fracture"
    cuts: Sequence[int] = (1, 3)
    width_mm: Sequence[float] = (2.0, 5.0)

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw number and widths, and the seed of places and directions."""
        cuts = draw_count(rng, self.cuts, "cuts")
        widths = [draw_range(rng, self.width_mm, "width_mm") for _ in range(cuts)]
        return {"transform": self.name, "seed": draw_seed(rng), "widths_mm": widths}

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """Nothing grows."""
        return 0.0

    @classmethod
    def flaw_region(
        cls,
        region: np.ndarray,
        spacing_mm: tuple[float, ...],
        choice: Mapping[str, Any],
        strength: float,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Cut along lines (planes) through random points of the region."""
        spacing, places = np.asarray(spacing_mm), np.argwhere(region)
        result = region.copy()
        for width in choice["widths_mm"]:
            direction = rng.standard_normal(region.ndim)
            direction /= np.linalg.norm(direction)
            offsets = (places - places[rng.integers(len(places))]) * spacing @ direction
            result[tuple(places[np.abs(offsets) <= strength * width / 2].T)] = False
        return result


@dataclass(frozen=True)
class Blank(LabelNoise):
    """Nothing is drawn at all: a case that was skipped, or saved empty."""

    name = "blank"
    smooth = False
    may_erase = True

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Nothing to draw."""
        return {"transform": self.name}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """An empty label."""
        return np.zeros_like(annotation.label)
