"""How several raters agree on one case: overlap, kappa, distances, and who lies where relative to the others.

The mask that a rater is compared with is the vote of all *others*, never one that the rater took part in: with few
raters everybody agrees with a vote of which one's own is a third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations as pairs_of

import numpy as np
from scipy import ndimage

from maskmend.boxes import bounding_box
from maskmend.data.preprocess import IGNORED
from maskmend.data.raters import combinations
from maskmend.evaluate.surface import surface

_NAN = float("nan")


@dataclass(frozen=True)
class PairFigures:
    """Two raters on one case.

    Args:
        dice: by class; NaN where neither drew it, 0 where only one did.
        distance_mm: average symmetric surface distance by class; NaN unless both drew it.
        kappa: Cohen's, over the voxels that both annotated; NaN where it is not defined (one value only).
    """

    dice: dict[str, float]
    distance_mm: dict[str, float]
    kappa: float


@dataclass(frozen=True)
class RaterCase:
    """One rater on one case, against the vote of the others.

    Args:
        dice, offset_mm, distance_mm, sensitivity, precision: by class. The offset is above 0 where the rater's
            outline lies outside. NaN where the figure has no meaning.
        drew: by class, whether the rater drew it; `others` whether the vote of the others has it.
        voxels: drawn by class.
    """

    dice: dict[str, float]
    offset_mm: dict[str, float]
    distance_mm: dict[str, float]
    sensitivity: dict[str, float]
    precision: dict[str, float]
    drew: dict[str, bool]
    others: dict[str, bool]
    voxels: dict[str, int]


@dataclass(frozen=True)
class CaseAgreement:
    """All raters on one case.

    Args:
        case: id.
        raters: who drew it, in order.
        pairs: figures by pair of names.
        each: figures by name.
        fleiss: Fleiss' kappa over the voxels that all annotated; NaN where it is not defined.
        disputed: voxels on which the raters do not all agree.
        close: how close the vote is: the minority's share of the votes, summed over voxels, times 2, per voxel that
            anybody drew; in [0, 1]. 0: all agree; 1: half against half everywhere.
        place: array index of the middle of the largest disputed part; None where there is none.
        given: the given label against the vote of all raters, if there is one that is no rater's.
        dice_given: mean Dice over classes of each rater with it.
    """

    case: str
    raters: tuple[str, ...]
    pairs: dict[tuple[str, str], PairFigures]
    each: dict[str, RaterCase]
    fleiss: float
    disputed: int
    close: float
    place: tuple[int, ...] | None = None
    given: RaterCase | None = None
    dice_given: dict[str, float] = field(default_factory=dict)


def compare_raters(
    case: str,
    masks: Mapping[str, np.ndarray],
    spacing_mm: Sequence[float],
    classes: Sequence[str],
    given: np.ndarray | None = None,
) -> CaseAgreement:
    """Compare the masks of one case.

    Args:
        case: id.
        masks: rater name to (*S) uint8 class indices, `IGNORED` where the rater left a voxel out; two or more.
        spacing_mm: voxel size in the order of the axes.
        classes: names, background first.
        given: (*S) class indices of a further label, which is compared with the raters and takes no part.
    """
    names, stack = tuple(masks), np.stack(list(masks.values()))
    rows, counts, which = combinations(stack, len(classes))
    shares = _shares(rows, len(classes))
    drawn = ((stack > 0) & (stack != IGNORED)).any(0) | (False if given is None else given > 0)
    box = bounding_box(drawn, 1)  # neighbours decide surfaces
    views = {name: Outlines(mask[box], spacing_mm, classes) for name, mask in masks.items()}
    where = (slice(None), *box)
    inside = stack[where]
    return CaseAgreement(
        case,
        names,
        {pair: _pair(views, pair, masks, len(classes)) for pair in pairs_of(names, 2)},
        {name: _against_others(name, inside, names, views, spacing_mm, classes) for name in names},
        fleiss_kappa(rows, counts, len(classes)),
        int(counts[_split(rows)].sum()),
        _closeness(rows, counts, shares),
        _place(_split(rows)[which]),
        *(() if given is None else _given(given[box], inside, views, spacing_mm, classes)),
    )


class Outlines:
    """The masks of one rater by class, with what distances need.

    A distance map per rater serves all comparisons with that rater, which with ten raters is a tenth of the work of a
    search per pair; the figures are those of `evaluate.surface`.
    """

    def __init__(self, label: np.ndarray, spacing_mm: Sequence[float], classes: Sequence[str]) -> None:
        self.valid = label != IGNORED
        self.masks = {name: label == k for k, name in enumerate(classes) if k}
        self._spacing = tuple(spacing_mm)
        self._edges: dict[str, np.ndarray] = {}
        self._maps: dict[str, np.ndarray] = {}

    def edge(self, name: str) -> np.ndarray:
        """(*S) bool, the surface of a class."""
        if name not in self._edges:
            self._edges[name] = surface(self.masks[name], None if self.valid.all() else self.valid)
        return self._edges[name]

    def distances(self, name: str) -> np.ndarray:
        """(*S) mm to the nearest surface voxel of a class, which must have one."""
        if name not in self._maps:
            self._maps[name] = ndimage.distance_transform_edt(~self.edge(name), sampling=self._spacing)
        return self._maps[name]

    def apart(self, other: Outlines, name: str) -> float:
        """Average symmetric surface distance in mm to another's class; NaN unless both have a surface."""
        mine, theirs = self.edge(name), other.edge(name)
        if not mine.any() or not theirs.any():
            return _NAN
        both = np.concatenate([other.distances(name)[mine], self.distances(name)[theirs]])
        return float(both.mean())

    def outside(self, other: Outlines, name: str) -> float:
        """Mean signed distance in mm by which this outline lies outside another's; NaN unless both have a surface.

        Every surface voxel counts with its distance to the other surface: above 0 where it shows that this mask is the
        larger one, below 0 where the smaller. Two balls with radii r + d and r are d apart.
        """
        mine, theirs = self.edge(name), other.edge(name)
        if not mine.any() or not theirs.any():
            return _NAN
        out = np.where(other.masks[name][mine], -1, 1) * other.distances(name)[mine]
        inner = np.where(self.masks[name][theirs], 1, -1) * self.distances(name)[theirs]
        return float((out.mean() + inner.mean()) / 2)


# ---- kappa ----------------------------------------------------------------------------------------------


def cohen_kappa(first: np.ndarray, second: np.ndarray, classes: int) -> float:
    """Cohen's kappa of two masks over the voxels that both annotated; NaN where both hold one value only.

    Args:
        first, second: class indices of one shape, `IGNORED` where not annotated.
        classes: K.
    """
    known = (first != IGNORED) & (second != IGNORED)
    joint = np.bincount(first[known].astype(np.int64) * classes + second[known], minlength=classes**2)
    table = joint.reshape(classes, classes) / max(joint.sum(), 1)
    chance = float(table.sum(0) @ table.sum(1))
    return (float(np.trace(table)) - chance) / (1 - chance) if 0 < chance < 1 - 1e-12 else _NAN


def fleiss_kappa(rows: np.ndarray, counts: np.ndarray, classes: int) -> float:
    """Fleiss' kappa from a table of votes, over the voxels that all annotated.

    Args:
        rows: (Q, R) class indices, `IGNORED` for no vote.
        counts: voxels of each row, (Q,).
        classes: K.
    """
    known = (rows != IGNORED).all(1)
    votes = np.stack([(rows[known] == k).sum(1) for k in range(classes)], 1).astype(float)
    weight, raters = counts[known].astype(float), rows.shape[1]
    if not weight.sum():
        return _NAN
    weight /= weight.sum()
    agreed = float(weight @ ((votes**2).sum(1) - raters) / (raters * (raters - 1)))
    share = weight @ votes / raters
    chance = float((share**2).sum())
    return (agreed - chance) / (1 - chance) if chance < 1 - 1e-12 else _NAN


# ---- parts of a comparison ---------------------------------------------------------------------------------


def _shares(rows: np.ndarray, classes: int) -> np.ndarray:
    """(Q, K) share of the votes for each class; all 0 where nobody voted."""
    votes = np.stack([(rows == k).sum(1) for k in range(classes)], 1).astype(float)
    return votes / np.maximum(votes.sum(1, keepdims=True), 1)


def _split(rows: np.ndarray) -> np.ndarray:
    """(Q,) bool: two raters differ."""
    return np.array([len(set(row[row != IGNORED].tolist())) > 1 for row in rows], bool)


def _closeness(rows: np.ndarray, counts: np.ndarray, shares: np.ndarray) -> float:
    drawn = ((rows > 0) & (rows != IGNORED)).any(1)
    total = counts[drawn].sum()
    return float(2 * ((1 - shares[drawn].max(1)) * counts[drawn]).sum() / total) if total else 0.0


def _place(disputed: np.ndarray) -> tuple[int, ...] | None:
    """The deepest voxel of what is disputed: where it is thickest."""
    if not disputed.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(disputed, 1))
    return tuple(int(i) - 1 for i in np.unravel_index(int(depth.argmax()), depth.shape))


def _pair(
    views: Mapping[str, Outlines], pair: tuple[str, str], masks: Mapping[str, np.ndarray], classes: int
) -> PairFigures:
    a, b = (views[name] for name in pair)
    return PairFigures(
        {name: _dice(a, b, name) for name in a.masks},
        {name: a.apart(b, name) for name in a.masks},
        cohen_kappa(masks[pair[0]], masks[pair[1]], classes),
    )


def _dice(a: Outlines, b: Outlines, name: str) -> float:
    known = a.valid & b.valid
    first, second = a.masks[name] & known, b.masks[name] & known
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / total if total else _NAN


def _against_others(
    name: str, stack: np.ndarray, names: tuple[str, ...], views: Mapping[str, Outlines],
    spacing_mm: Sequence[float], classes: Sequence[str],
) -> RaterCase:  # fmt: skip
    rest = [i for i, other in enumerate(names) if other != name]
    vote = vote_of(stack[rest], spacing_mm, len(classes))
    return _against(views[name], Outlines(vote, spacing_mm, classes))


def _given(
    label: np.ndarray, stack: np.ndarray, views: Mapping[str, Outlines],
    spacing_mm: Sequence[float], classes: Sequence[str],
) -> tuple[RaterCase, dict[str, float]]:  # fmt: skip
    """The given label against the vote of all, and each rater's mean Dice with it."""
    own = Outlines(label, spacing_mm, classes)
    vote = Outlines(vote_of(stack, spacing_mm, len(classes)), spacing_mm, classes)
    dice = {name: [_dice(own, view, key) for key in own.masks] for name, view in views.items()}
    known = {name: [value for value in values if np.isfinite(value)] for name, values in dice.items()}
    return _against(own, vote), {name: float(np.mean(v)) if v else _NAN for name, v in known.items()}


def _against(mine: Outlines, vote: Outlines) -> RaterCase:
    names = list(mine.masks)
    known = mine.valid & vote.valid
    hits = {name: np.count_nonzero(mine.masks[name] & vote.masks[name] & known) for name in names}
    drawn = {name: int(np.count_nonzero(mine.masks[name] & known)) for name in names}
    there = {name: int(np.count_nonzero(vote.masks[name] & known)) for name in names}
    return RaterCase(
        {name: _dice(mine, vote, name) for name in names},
        {name: mine.outside(vote, name) for name in names},
        {name: mine.apart(vote, name) for name in names},
        {name: hits[name] / there[name] if there[name] else _NAN for name in names},
        {name: hits[name] / drawn[name] if drawn[name] else _NAN for name in names},
        {name: drawn[name] > 0 for name in names},
        {name: there[name] > 0 for name in names},
        drawn,
    )


def vote_of(stack: np.ndarray, spacing_mm: Sequence[float], classes: int) -> np.ndarray:
    """(*S) the class with most votes of (R, *S); `IGNORED` where nobody voted.

    With an even number of raters a plain vote must settle ties, and settling them for the background makes every vote
    too small. Here a tied voxel takes the class in which it lies deeper on average: for two outlines around one another
    that is the outline half way between.
    """
    votes = np.stack([(stack == k).sum(0) for k in range(classes)])
    winner = votes.argmax(0).astype(np.uint8)
    tied = ((votes == votes.max(0)).sum(0) > 1) & (votes.sum(0) > 0)
    if tied.any():
        depth = np.stack([_mean_depth(stack == k, spacing_mm) for k in range(classes)])
        depth[votes < votes.max(0)] = -np.inf
        winner[tied] = depth.argmax(0)[tied]
    winner[(stack == IGNORED).all(0)] = IGNORED
    return winner


def _mean_depth(masks: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """(*S) signed distance to the outlines of (R, *S) bool, above 0 inside, mean over raters."""
    total = np.zeros(masks.shape[1:])
    far = float(np.linalg.norm(np.multiply(masks.shape[1:], spacing_mm)))
    for mask in masks:
        if mask.all() or not mask.any():
            total += far if mask.any() else -far
            continue
        total += ndimage.distance_transform_edt(mask, sampling=spacing_mm)
        total -= ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return total / len(masks)
