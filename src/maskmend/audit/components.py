"""The connected parts of a mask, each judged by itself: of twelve lesions, which one to look at.

A part is what the mask has in one piece of a class, or what is suggested in one piece where the mask has none of it. To
it belongs what is nearer to it than to other parts of its class, no farther than its own radius from it and from what
is suggested in its place. Within that it is judged as the only object of its image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from maskmend.audit.estimate import Opinion
from maskmend.audit.kinds import LEAST_PART, are_apart, class_kind, parts_apart
from maskmend.audit.look import LEAST
from maskmend.audit.objects import CORNERS
from maskmend.audit.record import ClassRecord, ComponentRecord, Kind
from maskmend.audit.shape import ball_radius
from maskmend.boxes import bounding_box

MOST = 100  # of a class, the largest
AROUND = 2  # voxels at least that belong to a part beside it

Interval = Callable[[int, float, bool], tuple[float, float]]
"""Of the true Dice of one of several parts: by the index of its class, the estimated one, and whether it is apart."""


@dataclass(frozen=True)
class Part:
    """A connected part of a class.

    Args:
        index: of the class.
        present: the mask has it; else it is suggested.
        apart: mask and suggestion have hardly anything in common there, so it is doubted as a whole.
        here: (*P) bool, its voxels in the box.
        box: where (*P) lies in the look.
        ground: (*P) bool, what belongs to it.
    """

    index: int
    present: bool
    apart: bool
    here: np.ndarray
    box: tuple[slice, ...]
    ground: np.ndarray

    def opinion(self, opinion: Opinion) -> Opinion:
        """The opinion of a mask that has nothing but this part, and of an image in which nothing else is seen."""
        look, ground = opinion.look, self.ground
        of_all = (slice(None), *self.box)
        probs = np.where(ground, look.probs[of_all], LEAST)
        probs[0][~ground] = 1
        label = np.where(ground, look.label[self.box], 0).astype(np.uint8)
        valid = None if look.valid is None else look.valid[self.box]
        alone = replace(look, probs=probs, label=label, valid=valid, memo={})
        return replace(
            opinion, look=alone, noise=np.where(ground, opinion.noise[self.box], 0).astype(np.float32)
        )

    def within(self, mask: np.ndarray) -> np.ndarray:
        """(*P) what a mask (*B) of class indices has on its ground; 0 elsewhere."""
        return np.where(self.ground, mask[self.box], 0)

    def dice(self, opinion: Opinion, suggested: np.ndarray, alone: Opinion | None = None) -> float:
        """Estimated Dice of the mask there; of a part that is doubted as a whole how likely the mask is right.

        Args:
            opinion: of the case. suggested: (*B). alone: `opinion` of this part, where it is known already.
        """
        if self.apart:
            return 1 - self.doubt(opinion)
        alone = alone or self.opinion(opinion)
        return float(alone.dice(self.within(suggested))[self.index - 1])

    def doubt(self, opinion: Opinion) -> float:
        """How likely its voxels are wrong, on average."""
        return float(opinion.noise[self.box][self.here].mean())


def parts(
    given: np.ndarray, suggested: np.ndarray, index: int, spacing_mm: Sequence[float]
) -> Iterator[Part]:
    """Of one class, the largest 100.

    Args:
        given, suggested: (*B) class indices.
        index: of the class.
        spacing_mm: voxel size in the order of the axes.
    """
    near = bounding_box((given == index) | (suggested == index), 0)
    own, better = (one[near] == index for one in (given, suggested))
    if not (own.any() or better.any()):
        return
    numbered, drawn = ndimage.label(own, CORNERS[given.ndim])
    sizes = np.bincount(numbered.ravel())
    apart = np.zeros(len(sizes), bool)
    union = numbered
    if not np.array_equal(own, better):
        apart = are_apart(sizes, np.bincount(numbered[better], minlength=len(sizes)))
        union, _ = ndimage.label(own | better, CORNERS[given.ndim])
        missed = parts_apart(better, own) & ~own
        more, count = ndimage.label(missed, CORNERS[given.ndim])
        numbered = np.where(missed, more + drawn, numbered)
        sizes, apart = np.bincount(numbered.ravel()), np.concatenate([apart, np.ones(count, bool)])
    sizes[0] = 0
    if not sizes.any():  # a speck that is suggested where nothing is drawn
        return
    everywhere = np.zeros(given.shape, numbered.dtype)
    everywhere[near] = numbered
    corner = [one.start for one in near]
    places, wide = ndimage.find_objects(numbered), ndimage.find_objects(union)
    least = min(LEAST_PART, int(sizes.max()))
    for number in sorted(np.flatnonzero(sizes >= least).tolist(), key=lambda n: (-sizes[n], n))[:MOST]:
        inner = places[number - 1]
        around = wide[int(union[inner][numbered[inner] == number][0]) - 1]
        radius = ball_radius(float(sizes[number]) * prod(spacing_mm), given.ndim)
        far = [max(AROUND, int(np.ceil(radius / step))) for step in spacing_mm]
        box = tuple(
            slice(max(one.start + c - r, 0), min(one.stop + c + r, size))
            for one, c, r, size in zip(around, corner, far, given.shape, strict=True)
        )
        there = everywhere[box]
        present, ground = number <= drawn, _nearest(there, spacing_mm) == number
        yield Part(index, present, bool(apart[number]), there == number, box, ground)


def sole(every: Sequence[Part]) -> bool:
    """Whether these are no parts: one that is all there is of its class, of which all is said already."""
    return len(every) == 1 and not every[0].apart


def _nearest(numbered: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Each voxel's nearest number above 0 (*P), from numbers (*P)."""
    most = int(numbered.max())
    if not ((numbered > 0) & (numbered < most)).any():
        return np.full(numbered.shape, most)
    places = ndimage.distance_transform_edt(
        numbered == 0, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    return np.asarray(numbered[tuple(places)])


def components(
    opinion: Opinion, suggested: np.ndarray, classes: Sequence[ClassRecord], interval: Interval
) -> tuple[ComponentRecord, ...]:
    """The parts of a case, worst first.

    Args:
        opinion: of the case.
        suggested: (*B).
        classes: what is said of each foreground class; the same is said of its only part.
        interval: of the true Dice of one of several.
    """
    look, found = opinion.look, list[ComponentRecord]()
    for index, one in enumerate(classes, 1):
        every = list(parts(look.label, suggested, index, look.spacing_mm))
        if sole(every) and one.estimated_dice is not None:
            assert one.dice_low is not None
            assert one.dice_high is not None
            said = _Said(one.estimated_dice, one.dice_low, one.dice_high, one.wrong_share, one.kind)
            found.append(_record(every[0], opinion, said, one.name))
        else:
            found += [
                _record(part, opinion, _said(part, opinion, suggested, interval), one.name) for part in every
            ]
    return tuple(sorted(found, key=lambda one: (one.quality, -one.voxels)))


class _Said(NamedTuple):
    quality: float
    low: float
    high: float
    wrong_share: float
    kind: Kind


def _said(part: Part, opinion: Opinion, suggested: np.ndarray, interval: Interval) -> _Said:
    alone = part.opinion(opinion)
    kind = class_kind(alone, part.within(suggested), part.index)[0]
    if part.apart and kind != "sound":
        kind = "invented object" if part.present else "missing object"
    quality = part.dice(opinion, suggested, alone)
    low, high = interval(part.index, quality, part.apart)
    return _Said(quality, low, high, alone.class_wrong_share(part.index), kind)


def _record(part: Part, opinion: Opinion, said: _Said, name: str) -> ComponentRecord:
    starts = zip(part.box, opinion.look.box, strict=True)
    places = np.argwhere(part.here) + [a.start + b.start for a, b in starts]
    middle = places[np.square(places - places.mean(0)).sum(1).argmin()]
    return ComponentRecord(
        name=name,
        present=part.present,
        voxels=len(places),
        probability=round(part.doubt(opinion), 4) if part.apart else 0.0,
        centre=tuple(map(int, middle)),
        quality=round(said.quality, 4),
        quality_low=round(said.low, 4),
        quality_high=round(said.high, 4),
        wrong_share=round(said.wrong_share, 4),
        kind=said.kind,
    )
