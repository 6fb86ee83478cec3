"""Who comes first, how sure that is, and who cannot be told apart (Demsar, JMLR 2006)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def ranks_of(table: np.ndarray) -> np.ndarray:
    """Ranks along each row of (blocks, methods); 1 is the largest value, ties share."""
    from scipy.stats import rankdata

    ranks: np.ndarray = rankdata(-table, axis=1) if table.size else np.zeros((0, 0))
    return ranks


def friedman(ranks: np.ndarray) -> float:
    """The p-value of Friedman's test that all methods are alike, from ranks (blocks, methods).

    NaN with fewer than three methods or two blocks, 1 when all ranks are tied.
    """
    from scipy.stats import friedmanchisquare

    if ranks.ndim < 2 or ranks.shape[0] < 2 or ranks.shape[1] < 3:
        return float("nan")
    if not np.ptp(ranks, axis=1).any():
        return 1.0
    return float(friedmanchisquare(*ranks.T).pvalue)


def critical_difference(methods: int, conditions: int, level: float = 0.05) -> float:
    """Nemenyi's critical difference of mean ranks; NaN with fewer than 2 of either."""
    from scipy.stats import studentized_range

    if methods < 2 or conditions < 2:
        return float("nan")
    quantile = studentized_range.ppf(1 - level, methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * conditions)))


def cliques(ranks: Mapping[str, float], critical: float) -> list[tuple[str, ...]]:
    """Largest groups of methods whose mean ranks lie within the critical difference, at least two each."""
    names = sorted(ranks, key=lambda name: ranks[name])
    groups: list[tuple[str, ...]] = []
    for start, first in enumerate(names):
        group = tuple(name for name in names[start:] if ranks[name] - ranks[first] <= critical)
        if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
            groups.append(group)
    return groups
