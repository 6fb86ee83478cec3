"""A hand that drifts: the outline walks outwards or inwards in many small random steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from maskmend.errors import UsageError
from maskmend.noise.base import Annotation, Choice, RegionNoise
from maskmend.noise.draws import at_least, draw_seed


@dataclass(frozen=True)
class MarkovWalk(RegionNoise):
    """At each step grow (with probability `grow`) or shrink; each border voxel takes part with probability `take`.

    Errors are correlated along the outline and biased in one direction, as those of people are. The mean
    outline moves by about 2 `length_mm` `take` (2 `grow` - 1): a border voxel is reached from about two
    sides. Dice depends strongly on the structure's size, so calibrate.

    Args:
        length_mm: number of steps times their length of one voxel, so that finer voxels get more steps.
        grow: probability that a step grows, in [0, 1]; below 0.5 the label shrinks.
        take: probability that a border voxel takes part, in [0, 1].
        flip: share of voxels flipped at the end, in [0, 0.5]; of these the 5 x 5 mean that follows leaves
            those beside the outline.

    Example:
        >>> import numpy as np
        >>> from maskmend.noise.base import Annotation, flaw
        >>> label = np.zeros((60, 60), np.uint8); label[20:40, 20:40] = 1
        >>> truth = Annotation(label, (1.0, 1.0))
        >>> choice = MarkovWalk(60, grow=0.8).choose(np.random.default_rng(0), truth)
        >>> bool(flaw(truth, choice).sum() > label.sum())
        True

    Source: Yao et al., "Learning to segment from noisy annotations: a spatial correction approach", ICLR 2023
    (T = 180, theta1 = `grow` .8 or .2, theta2 = `take` .05, theta3 = `flip`). Ours: steps in millimetres, and
    on anisotropic voxels an axis is taken less often the longer its voxels are.
    """

    name = "markov"
    max_strength = 8.0
    length_mm: float = 180.0
    grow: float = 0.8
    take: float = 0.05
    flip: float = 0.1

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Record the probabilities and draw the seed of the walk."""
        for name, limit in (("grow", 1.0), ("take", 1.0), ("flip", 0.5)):
            if not 0 <= getattr(self, name) <= limit:
                raise UsageError(f"{getattr(self, name)} is not in [0, {limit:g}]", name)
        length = at_least(self.length_mm, 0, "length_mm")
        facts = {"length_mm": length, "grow": self.grow, "take": self.take, "flip": self.flip}
        return {"transform": self.name, "seed": draw_seed(rng)} | facts

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """The expected walk and six deviations."""
        step = min(spacing_mm)
        moves = strength * choice["length_mm"] / step * choice["take"]
        return float(step * (4 + 2 * moves * max(0.0, 2 * choice["grow"] - 1) + 6 * math.sqrt(2 * moves)))

    @classmethod
    def flaw_region(
        cls,
        region: np.ndarray,
        spacing_mm: tuple[float, ...],
        choice: Mapping[str, Any],
        strength: float,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Walk, flip, smooth. A stronger walk begins with the weaker one's steps."""
        step = min(spacing_mm)
        outline = _Outline(region, [choice["take"] * step / size for size in spacing_mm])
        flips = np.random.default_rng(rng.integers(2**32)).random(region.shape)
        for _ in range(round(strength * choice["length_mm"] / step)):
            outline.step(bool(rng.random() < choice["grow"]), rng)
        inside = outline.region()
        near = ndimage.binary_dilation(inside, iterations=3)  # far away, the mean would undo them anyhow
        inside = inside ^ (near & (flips < choice["flip"] * min(1.0, strength)))
        sides = [2 * round(2 * step / size) + 1 for size in spacing_mm]
        smooth: np.ndarray = ndimage.uniform_filter(inside.astype(np.float32), sides, mode="nearest") > 0.5
        return smooth


class _Outline:
    """A region and the voxels on either side of its outline, kept up to date as voxels flip.

    A walk has hundreds of steps and flips a few voxels in each: after a step only these and their neighbours
    are looked at, not the image.

    Args:
        region: (*S) bool; what lies beyond the image counts as outside and stays so.
        chances: by axis, the probability that a voxel joins a neighbour along it.
    """

    def __init__(self, region: np.ndarray, chances: list[float]) -> None:
        padded = np.pad(region, 1)
        self._shape, self._inside = padded.shape, padded.ravel()
        self._flippable = np.pad(np.ones(region.shape, bool), 1).ravel()
        strides = [stride // padded.itemsize for stride in padded.strides]
        self._axes = sorted(zip(chances, strides, strict=True))
        self._edges = {grow: np.zeros(padded.size, bool) for grow in (True, False)}
        self._look(np.flatnonzero(ndimage.binary_dilation(padded) & ~ndimage.binary_erosion(padded)))

    def region(self) -> np.ndarray:
        """The region as it is now, (*S) bool."""
        return self._inside.reshape(self._shape)[(slice(1, -1),) * len(self._shape)]

    def step(self, grow: bool, rng: np.random.Generator) -> None:
        """Let the region, or what is around it, take border voxels of the other."""
        border = np.flatnonzero(self._edges[grow])
        taken = border[rng.random(len(border)) < self._chance(border)]
        self._inside[taken] = grow
        self._look(np.concatenate([taken, *(taken + side * n for _, n in self._axes for side in (-1, 1))]))

    def _chance(self, border: np.ndarray) -> np.ndarray | float:
        """That of the nearest neighbour on the other side: axes come from the least chance to the largest."""
        if self._axes[0][0] == self._axes[-1][0]:
            return self._axes[0][0]
        chance = np.zeros(len(border))
        for probability, stride in self._axes:
            chance[self._differs(border, stride)] = probability
        return chance

    def _look(self, places: np.ndarray) -> None:
        """Note which of these voxels lie on the outline."""
        places = places[self._flippable[places]]
        differs = np.logical_or.reduce([self._differs(places, stride) for _, stride in self._axes])
        inside = self._inside[places]
        self._edges[True][places], self._edges[False][places] = differs & ~inside, differs & inside

    def _differs(self, places: np.ndarray, stride: int) -> np.ndarray:
        """Whether one of both neighbours along an axis is on the other side."""
        inside = self._inside
        return (inside[places - stride] != inside[places]) | (inside[places + stride] != inside[places])
