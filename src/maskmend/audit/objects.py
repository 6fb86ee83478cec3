"""Objects that only the mask or only the model has: connected parts of a class of which the other has no voxel.

Whether such an object is there is another question than where an outline runs, and has other evidence: how sure the
model is of all its voxels. In the figures of the outlines it would drown (a lesion within an organ), or look like an
error wherever a model misses things or sees what is not there (see `maskmend.audit.evidence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from scipy import ndimage

from maskmend.audit.look import Look

MOST = 100  # of a class and side that are judged by themselves

CORNERS = {ndim: np.ones((3,) * ndim, int) for ndim in (2, 3)}
"""Which voxels are neighbours: those that share a corner."""


@dataclass(frozen=True)
class Lone:
    """An object that one side has alone.

    Args:
        index: of its class.
        drawn: the mask has it; else the model.
        volume: mm2 or mm3.
        confidence: of the model, mean over its voxels of the log odds of the likeliest class against the given one.
        first: the mask has nothing of its class.
    """

    index: int
    drawn: bool
    volume: float
    confidence: float
    first: bool = False


@dataclass(frozen=True)
class Objects:
    """The objects of a case.

    Args:
        drawn: (K - 1,) how many the mask has of each class.
        lone: those that one side has alone, each with the flat places (n,) of its voxels in the box; the largest 100
            of a class and side.
        rest: flat places of the others, specks of a model that knows little.
    """

    drawn: np.ndarray
    lone: Sequence[tuple[Lone, np.ndarray]]
    rest: Sequence[np.ndarray] = ()

    @classmethod
    def of(cls, look: Look) -> Objects:
        """Of a look with calibrated probabilities."""
        drawn, lone, rest = (
            np.zeros(look.classes - 1, int),
            list[tuple[Lone, np.ndarray]](),
            list[np.ndarray](),
        )
        for index, (own, seen) in enumerate(zip(_drawn_parts(look), _seen_parts(look), strict=True), 1):
            drawn[index - 1] = own.count if own else 0
            for part, other, is_drawn in ((own, look.decided, True), (seen, look.label, False)):
                found = part.without(other, index) if part else []
                if len(found) > MOST:
                    found.sort(key=len, reverse=True)
                    rest += found[MOST:]
                lone += [
                    (_described(look, index, is_drawn, own is None, where), where) for where in found[:MOST]
                ]
        return cls(drawn, lone, rest)

    def settled(self, look: Look) -> Look:
        """The case with these objects as the model has them; as it is where mask and model have nothing in common."""
        if not self.lone or not ((look.label > 0) & (look.decided > 0)).any():
            return look
        label, places = look.label.ravel().copy(), self._places
        label[places] = look.decided.ravel()[places]
        return look.with_label(label.reshape(look.label.shape))

    @property
    def _places(self) -> np.ndarray:
        return np.concatenate([*(where for _, where in self.lone), *self.rest])

    def share(self, changed: np.ndarray) -> float:
        """How much of the changed voxels (*B) bool lies in them, in [0, 1]."""
        inside = int(np.count_nonzero(changed.ravel()[self._places])) if self.lone else 0
        return inside / max(int(np.count_nonzero(changed)), 1)


@dataclass(frozen=True)
class _Parts:
    """Connected parts of a class: `numbered` from 1 in a `box` of an array of this `shape`."""

    numbered: np.ndarray
    count: int
    box: tuple[slice, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, mask: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> _Parts:
        numbered, count = ndimage.label(mask, CORNERS[mask.ndim])
        return cls(numbered, int(count), box, shape)

    def without(self, other: np.ndarray, index: int) -> list[np.ndarray]:
        """Flat places of each part that has no voxel of this class in the other label (*B)."""
        shared = self.numbered[other[self.box] == index]
        if self.count == 1 and shared.any():
            return []
        alone = np.bincount(shared, minlength=self.count + 1) == 0
        alone[0] = False
        if not alone.any():
            return []
        inside = np.flatnonzero(alone[self.numbered])
        numbers = self.numbered.ravel()[inside]
        order = np.argsort(numbers, kind="stable")
        at = np.unravel_index(inside[order], self.numbered.shape)
        corner = [one.start for one in self.box]
        places = np.ravel_multi_index([a + start for a, start in zip(at, corner, strict=True)], self.shape)
        sizes = np.bincount(numbers, minlength=self.count + 1)[alone]
        return np.split(places, np.cumsum(sizes)[:-1])


def _drawn_parts(look: Look) -> list[_Parts | None]:
    """Of each class; None where nothing of it is drawn."""
    shape = look.label.shape
    return [
        None if box is None else _Parts.of(look.label[box] == index, box, shape)
        for index, box in enumerate(look.boxes[1:], 1)
    ]


def _seen_parts(look: Look) -> list[_Parts | None]:
    """The same of what the model would draw."""
    if "seen parts" not in look.memo:
        found = ndimage.find_objects(look.decided, look.classes - 1)
        look.memo["seen parts"] = [
            None if box is None else _Parts.of(look.decided[box] == index, box, look.label.shape)
            for index, box in enumerate(found, 1)
        ]
    answer: list[_Parts | None] = look.memo["seen parts"]
    return answer


def _described(look: Look, index: int, drawn: bool, first: bool, where: np.ndarray) -> Lone:
    best = look.probs.reshape(look.classes, -1)[:, where].max(axis=0)
    confidence = float(np.log(best / look.given.ravel()[where]).mean())
    return Lone(index, drawn, len(where) * prod(look.spacing_mm), confidence, first)
