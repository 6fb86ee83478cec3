"""One case as the audit sees it: the given mask beside class probabilities, cut to where anything happens."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from scipy import ndimage

from maskmend.boxes import bounding_box

LEAST = 1e-3
"""Smallest probability that is believed: half precision and networks alike say little below it."""
SURE = 0.02  # background that is less doubtful than this is cut away, with nothing drawn there
MARGIN = 2
MANY = 500_000  # voxels of a box, beyond which not all of them are looked at for the figures of a case
LEAST_KEPT = 8  # voxels of an axis, which is not thinned below them
FINE = 4.0  # voxels that stay across the radius of the finest class
MOST_APART = 4  # voxels


@dataclass(frozen=True)
class Look:
    """What is known of one case.

    Args:
        case: id.
        probs: (K, *B) float32 in [LEAST, 1], background first, in the box.
        label: (*B) uint8 class indices as given; 0 where not valid.
        valid: (*B) bool, False where the label says "not annotated"; None: all of it counts.
        spacing_mm: voxel size in the order of the axes.
        box: where (*B) lies in the image.
        shape: of the image, (*S).
        each: voxels of the image that a voxel stands for, more than one in a look that was thinned.
        memo: what was computed from the probabilities alone, shared by looks that differ in their masks only.
    """

    case: str
    probs: np.ndarray
    label: np.ndarray
    valid: np.ndarray | None
    spacing_mm: tuple[float, ...]
    box: tuple[slice, ...]
    shape: tuple[int, ...]
    each: int = 1
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def classes(self) -> int:
        """K."""
        return len(self.probs)

    @property
    def fingerprint(self) -> tuple[str, int, float]:
        """Equal for looks of one case with equal masks and probabilities, as the same files give them again."""
        return self.case, zlib.crc32(self.label.tobytes()), float(self.probs[0].sum())

    @property
    def decided(self) -> np.ndarray:
        """(*B) uint8 the class that the model would draw; of equal ones the first."""
        if "decided" not in self.memo:
            best, found = self.probs[0].copy(), np.zeros(self.label.shape, np.uint8)
            for k, one in enumerate(self.probs[1:], 1):
                found[one > best] = k
                np.maximum(best, one, out=best)
            self.memo["decided"] = found
        answer: np.ndarray = self.memo["decided"]
        return answer

    @cached_property
    def given(self) -> np.ndarray:
        """(*B) the probability of the given label."""
        found: np.ndarray = self.probs[0].copy()
        for k, box in enumerate(self.boxes[1:], 1):
            if box is not None:
                np.copyto(found[box], self.probs[k][box], where=self.label[box] == k)
        return found

    @cached_property
    def boxes(self) -> list[tuple[slice, ...] | None]:
        """Of all that is drawn, then of each class, one voxel wider where there is room; None where nothing is."""
        found = ndimage.find_objects(self.label, self.classes - 1)
        there = [box for box in found if box is not None]
        if not there:
            return [None] * self.classes
        around = tuple(
            slice(min(one.start for one in axis), max(one.stop for one in axis))
            for axis in zip(*there, strict=True)
        )
        shape = self.label.shape
        return [
            None if box is None
            else tuple(slice(max(a.start - 1, 0), min(a.stop + 1, n)) for a, n in zip(box, shape, strict=True))
            for box in (around, *found)
        ]  # fmt: skip

    def thinned(self) -> Look:
        """Every n-th voxel along each axis, as an image of its own, where there are so many that fewer say the same.

        No class becomes so coarse that its outline is lost: its radius counts, three volumes by surface (of an image,
        two areas by outline). Nor does a stack of few slices lose them: an axis keeps eight voxels, or all of fewer.
        """
        if self.label.size <= MANY or self.each > 1:
            return self
        finest = self._finest_mm()
        apart = [
            int(np.clip(finest / (FINE * size), 1, min(MOST_APART, max(1, n // LEAST_KEPT))))
            for size, n in zip(self.spacing_mm, self.label.shape, strict=True)
        ]
        if max(apart) == 1:
            return self
        kept = tuple(slice(n // 2, None, n) for n in apart)
        of_all, label = (slice(None), *kept), np.ascontiguousarray(self.label[kept])
        return replace(
            self,
            probs=np.ascontiguousarray(self.probs[of_all]),
            label=label,
            valid=None if self.valid is None else np.ascontiguousarray(self.valid[kept]),
            spacing_mm=tuple(size * n for size, n in zip(self.spacing_mm, apart, strict=True)),
            box=(slice(None),) * label.ndim,
            shape=label.shape,
            each=prod(apart),
            memo={},
        )

    def _finest_mm(self) -> float:
        """Radius of the class that is drawn finest; 0 where nothing is drawn."""
        ndim, voxel, radii = self.label.ndim, prod(self.spacing_mm), list[float]()
        for k, box in enumerate(self.boxes[1:], 1):
            if box is None:
                continue
            mask = self.label[box] == k
            faces = [
                np.count_nonzero(np.diff(mask, axis=axis)) * voxel / size
                for axis, size in enumerate(self.spacing_mm)
            ]
            # by Cauchy and Crofton; `shape.outline` is quicker, but a third too long in volumes of thick slices
            surface = sum(faces) * {2: np.pi / 4, 3: 2 / 3}[ndim]
            radii.append(ndim * np.count_nonzero(mask) * voxel / max(surface, voxel))
        return min(radii, default=0.0)

    def with_label(self, label: np.ndarray) -> Look:
        """The same case with another mask (*B)."""
        return replace(self, label=label.astype(np.uint8))

    def with_probs(self, probs: np.ndarray) -> Look:
        """The same case with other probabilities (K, *B)."""
        return replace(self, probs=probs, memo={})

    def within(self, box: tuple[slice, ...]) -> Look:
        """The same case, cut so that this box of the image is in it too; what was cut away is surely background."""
        around = tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(self.box, box, strict=True)
        )
        if around == self.box:
            return self
        probs = np.stack(
            [self.whole(one, fill=1.0 if k == 0 else LEAST)[around] for k, one in enumerate(self.probs)]
        )
        valid = None if self.valid is None else self.whole(self.valid, fill=True)[around]
        return replace(
            self, probs=probs, label=self.whole(self.label)[around], valid=valid, box=around, memo={}
        )

    def whole(self, part: np.ndarray, fill: float = 0) -> np.ndarray:
        """A map (*B) on the image's own grid (*S), `fill` outside the box."""
        full: np.ndarray = np.full(self.shape, fill, part.dtype)
        full[self.box] = part
        return full


def look_at(
    case: str,
    probs: np.ndarray,
    label: np.ndarray,
    spacing_mm: Sequence[float],
    valid: np.ndarray | None = None,
) -> Look:
    """Cut a case to the box in which a class other than background is drawn or possible.

    Args:
        case: id.
        probs: (K, *S) probabilities, any float type.
        label: (*S) class indices in 0 .. K - 1.
        spacing_mm: voxel size in the order of the axes.
        valid: (*S) bool, False where the label is not known.
    """
    active = (label > 0) | (probs[0] < 1 - SURE)
    if valid is not None:
        active &= valid
    box = bounding_box(active, MARGIN)
    inside = (slice(None), *box)
    # In one order however they lie: sums of the same numbers come out the same.
    part, drawn = np.array(probs[inside], np.float32, order="C"), label[box].astype(np.uint8, order="C")
    known = None if valid is None or valid[box].all() else valid[box]
    if known is not None:  # what nobody knows agrees with everything
        drawn = np.where(known, drawn, 0).astype(np.uint8)
        part[0, ~known], part[1:, ~known] = 1, 0
    np.clip(part, LEAST, 1, out=part)
    return Look(case, part, drawn, known, tuple(map(float, spacing_mm)), box, label.shape)
