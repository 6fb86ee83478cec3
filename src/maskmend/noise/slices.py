"""Volumes annotated slice by slice: slices left out, guessed between neighbours, or each drawn on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskmend.errors import UsageError, unknown
from maskmend.noise.base import Annotation, Choice, Combined, LabelNoise, flaw
from maskmend.noise.draws import draw_count
from maskmend.noise.morphology import signed_distance_mm

FILLS = ("interpolate", "empty", "repeat")


@dataclass(frozen=True)
class SkipSlices(LabelNoise):
    """Annotate every n-th slice along axis 0; the others are interpolated, left empty, or repeat a neighbour.

    Args:
        every: smallest and largest n.
        fill: "interpolate" (by shape: the mean of signed distances, as annotation tools do; the first and
            last slice of a structure are always annotated), "empty", or "repeat" the nearest annotated slice.

    Images (2-D) have no slices: an error.
    """

    name = "slices"
    smooth = False
    every: Sequence[int] = (2, 5)
    fill: str = "interpolate"

    @property
    def may_erase(self) -> bool:  # type: ignore[override]
        """A structure between two annotated slices is lost with empty slices."""
        return self.fill != "interpolate"

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw n and which slice is the first."""
        if annotation.ndim != 3:
            raise UsageError("slices are skipped in volumes, not in images", "noise", "choose another noise")
        if self.fill not in FILLS:
            raise unknown("fill", self.fill, FILLS)
        every = draw_count(rng, self.every, "every", least=1)
        return {"transform": self.name, "every": every, "first": int(rng.integers(every)), "fill": self.fill}

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """Repeated slices may reach beyond the ends by less than n slices."""
        return strength * choice["every"] * spacing_mm[0]

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Strength scales the number of slices left out between two annotated ones."""
        label, every = annotation.label, 1 + round(strength * (choice["every"] - 1))
        used = np.flatnonzero(label.any((1, 2)))
        annotated = np.arange(used[0] + choice["first"] % every, used[-1] + 1, every)
        if choice["fill"] == "interpolate":
            return _interpolated(annotation, annotated)
        result = np.zeros_like(label)
        if choice["fill"] == "empty":
            result[annotated] = label[annotated]
        elif annotated.size:
            places = np.arange(used[0], used[-1] + 1)
            nearest = annotated[np.abs(places[:, None] - annotated).argmin(1)]
            result[places] = label[nearest]
        return result


def _interpolated(annotation: Annotation, annotated: np.ndarray) -> np.ndarray:
    """Between annotated slices every class takes the sign of its interpolated distance; the deepest class wins."""
    label, spacing = annotation.label, annotation.spacing_mm[1:]
    result, best = np.zeros_like(label), np.zeros(label.shape, np.float32)
    for value in annotation.classes:
        used = np.flatnonzero((label == value).any((1, 2)))
        inside = annotated[(annotated > used[0]) & (annotated < used[-1])]
        known = np.unique([used[0], *inside, used[-1]])
        depth = {int(k): _depth(label[k] == value, spacing) for k in known}
        for low, high in zip(known, [*known[1:], known[-1]], strict=True):
            for place in range(low, max(high, low + 1)):
                share = (place - low) / max(high - low, 1)
                guess = (1 - share) * depth[int(low)] + share * depth[int(high)]
                wins = guess > best[place]
                result[place][wins], best[place][wins] = value, guess[wins]
    return result


def _depth(region: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Signed distance (H, W), above 0 inside; an empty slice lies one voxel below 0 everywhere."""
    if not region.any():
        return np.full(region.shape, -float(max(spacing_mm)), np.float32)
    return signed_distance_mm(region, spacing_mm).astype(np.float32)


@dataclass(frozen=True)
class EachSlice(Combined):
    """A 2-D flaw drawn anew for every slice (axis 0) of a volume; an image is one slice.

    Args:
        inner: the flaw of a slice.

    Source: recipes that were published for slices of volumes.
    """

    name = "each_slice"
    inner: LabelNoise

    @property
    def parts(self) -> Sequence[LabelNoise]:
        """The flaw within."""
        return (self.inner,)

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Choose for every slice that holds foreground."""
        if annotation.ndim == 2:
            return self.inner.choose(rng, annotation)
        used = np.flatnonzero(annotation.label.any((1, 2)))
        slices = {str(k): self.inner.choose(rng, _slice(annotation, int(k))) for k in used}
        return {"transform": self.name, "slices": slices}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Slices without a choice stay."""
        result = np.array(annotation.label)
        for place, inner in choice["slices"].items():
            result[int(place)] = flaw(_slice(annotation, int(place)), inner, strength)
        return result


def _slice(annotation: Annotation, place: int) -> Annotation:
    image = None if annotation.image is None else annotation.image[:, place]
    return Annotation(
        annotation.label[place], annotation.spacing_mm[1:], image, annotation.layered, annotation.names
    )
