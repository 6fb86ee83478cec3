"""Several raters of one case: which of them count, and how their masks become one label.

A rule of fusion that treats voxels alike (a vote, STAPLE, SIMPLE) sees of a case only which combinations of
votes occur and how often. There are few of them, so such a rule works on a small table instead of on voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from maskmend.data.preprocess import IGNORED
from maskmend.errors import UsageError, unknown

Fuse = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(votes (Q, R) class indices or `IGNORED`, counts (Q,), classes K) to one class index per row, (Q,)."""


def majority(votes: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """The class with most votes; of equally many the one of the lower index, so background before foreground."""
    return vote_shares(votes, np.ones(votes.shape[1]), classes).argmax(axis=1)


def vote_shares(votes: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """Sum of the raters' weights (R,) for each class, (Q, K); a rater who left a voxel out has no say there."""
    return np.stack([(votes == k) @ weights for k in range(classes)], axis=1)


@dataclass(frozen=True)
class Raters:
    """Whose masks a run learns from, and how they become the one label of a case.

    Args:
        names: in the order of `batch["raters"]`.
        fuse: rule that makes one label of them.
        key: stands for the rule and its settings; cached labels made by another rule are not used.
    """

    names: tuple[str, ...]
    fuse: Fuse = majority
    key: str = "majority"


def chosen_raters(known: Sequence[str], wanted: Sequence[str], where: object = None) -> tuple[str, ...]:
    """The raters whose names match one of the patterns, in the order of `known`.

    Args:
        known: names of all raters.
        wanted: names, or patterns such as `rater*`.
        where: the data set, for the error message.

    Raises:
        UsageError: a pattern matches nobody, or fewer than two raters remain.
    """
    for pattern in wanted:
        if known and not any(fnmatchcase(name, pattern) for name in known):
            raise unknown("rater", pattern, known, "data.raters")
    names = tuple(name for name in known if any(fnmatchcase(name, pattern) for pattern in wanted))
    if len(names) < 2:
        fact = (
            f"masks of {len(names)} rater(s) ({', '.join(names) or 'labels/ alone'}) where several are needed"
        )
        remedy = (
            "put each rater's masks in labels_NAME/ or list the folders in maskmend.json (docs/data.md), "
            "or train with a method that learns from one label"
        )
        raise UsageError(fact, where, remedy)
    return names


def fused(votes: np.ndarray, classes: int, fuse: Fuse) -> np.ndarray:
    """One label (*P) uint8 from the masks of n raters (n, *P); `IGNORED` where none of them says anything."""
    table, counts, which = combinations(votes, classes)
    answer = np.asarray(fuse(table, counts, classes)).astype(np.uint8)
    answer[(table == IGNORED).all(axis=1)] = IGNORED
    return answer[which]


def combinations(votes: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which combinations of votes occur, how often, and where.

    Args:
        votes: (n, *P) uint8 class indices, `IGNORED` where a rater left a voxel out.
        classes: K.

    Returns:
        votes (Q, n) uint8, their counts (Q,) and for each voxel the row of its combination, (*P).
    """
    which = np.zeros(votes.shape[1:], np.int64)
    rows = np.zeros((1, 0), np.uint8)
    codes = np.array([*range(classes), IGNORED], np.uint8)
    for (
        mask
    ) in votes:  # after each rater only what occurs is kept: no sorting, and no overflow with many raters
        which = which * len(codes) + np.minimum(mask, classes)
        seen = np.bincount(which.ravel(), minlength=len(rows) * len(codes)) > 0
        grown = np.concatenate([np.repeat(rows, len(codes), 0), np.tile(codes, len(rows))[:, None]], axis=1)
        which, rows = (np.cumsum(seen) - 1)[which], grown[seen]
    return rows, np.bincount(which.ravel(), minlength=len(rows)), which
