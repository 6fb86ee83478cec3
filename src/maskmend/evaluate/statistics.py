"""Intervals and tests for few cases or few seeds, saying what so few can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from maskmend.errors import UsageError

Key = TypeVar("Key")

EXACT_UP_TO = 200
"""Pairs up to which the signed-rank p-value is exact; beyond, the normal approximation is as good."""


@dataclass(frozen=True)
class Interval:
    """A mean and the range it is known to.

    Args:
        estimate: the mean of the finite values; NaN without any.
        low: lower end; NaN with fewer than two values, which say nothing about spread.
        high: upper end.
        n: finite values used.
        level: coverage aimed at, e.g. 0.95.
    """

    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95


@dataclass(frozen=True)
class PairedTest:
    """A comparison of two results on the same cases, folds or seeds.

    Args:
        difference: mean of a - b.
        low: lower end of its bootstrap interval.
        high: upper end.
        p: two-sided Wilcoxon signed-rank p-value; 1.0 when no pair differs, NaN without pairs.
        smallest_p: the smallest p that so many pairs can reach, 2^(1-n). With n = 5 it is 0.0625: five
            seeds never reach 0.05, however large the difference; six do (0.03125).
        n: finite pairs.
        n_different: pairs that differ; the test uses only these.
    """

    difference: float
    low: float
    high: float
    p: float
    smallest_p: float
    n: int
    n_different: int


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0,
    method: str = "bca", groups: Sequence[str] | None = None,
) -> Interval:  # fmt: skip
    """The mean of the values and its bootstrap interval.

    With under about ten values every bootstrap interval is too short (five values: nearer 85 % than 95 %
    coverage); read it as a lower bound of the uncertainty.

    Args:
        values: one figure per independent unit (case, patient, seed); NaN is left out.
        level: coverage, in (0, 1).
        resamples: bootstrap samples.
        seed: decides them.
        method: "bca" (corrects bias and skew, the better for Dice near 1) or "percentile".
        groups: what each value belongs to (a patient with several cases); whole groups are drawn, since
            their values resemble one another. None: each value stands alone.

    Raises:
        UsageError: a level, number of samples or method out of range.
    """
    if not 0 < level < 1 or resamples < 1 or method not in ("bca", "percentile"):
        raise UsageError(f"no bootstrap with level {level}, {resamples} resamples, method {method!r}")
    data = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(data)
    sums, counts = _by_group(data, finite, groups)
    data = data[finite]
    if len(sums) < 2:
        mean = float(data.mean()) if len(data) else float("nan")
        return Interval(mean, float("nan"), float("nan"), len(data), level)
    means = _resampled_means(sums, counts, resamples, seed)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        tails = _corrected(tails, sums, counts, means)
    low, high = np.quantile(means, tails)
    return Interval(float(data.mean()), float(low), float(high), len(data), level)


def paired_test(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *,
    level: float = 0.95, resamples: int = 2000, seed: int = 0,
) -> PairedTest:  # fmt: skip
    """Compare two results pair by pair: mean difference with interval, and Wilcoxon's signed-rank test.

    The p-value is exact, also with ties, up to 200 pairs. Pairs in which either value is NaN are left out.

    Args:
        a: one figure per case, fold or seed.
        b: the other result's figures in the same order.
        level: coverage of the interval.
        resamples: bootstrap samples.
        seed: decides them.

    Raises:
        UsageError: lengths differ.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise UsageError(f"a paired test needs two lists of one length, got {first.shape} and {second.shape}")
    finite = np.isfinite(first) & np.isfinite(second)
    gap = (first - second)[finite]
    interval = bootstrap_interval(gap, level=level, resamples=resamples, seed=seed)
    n = len(gap)
    # Differences at the level of rounding are ties: 0.3 - 0.1 and 0.2 must rank alike.
    scale = max(np.abs(first[finite]).max(initial=0), np.abs(second[finite]).max(initial=0))
    gap = np.round(gap / scale, 12) if scale else gap
    smallest = 2.0 ** (1 - n) if n else float("nan")
    p, different = _signed_rank_p(gap), int(np.count_nonzero(gap))
    return PairedTest(interval.estimate, interval.low, interval.high, p, smallest, n, different)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjust p-values for having made several tests (Holm 1979): controls the chance of any false finding.

    Args:
        p_values: the name of each test to its p-value; NaN stays NaN and does not count as a test.

    Returns:
        The adjusted p-values, at most 1, in the order given.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted = dict(p_values)
    ranked = sorted((key for key, p in p_values.items() if p == p), key=lambda key: p_values[key])
    largest = 0.0
    for rank, key in enumerate(ranked):
        largest = max(largest, min(1.0, p_values[key] * (len(ranked) - rank)))
        adjusted[key] = largest
    return adjusted


def _by_group(
    data: np.ndarray, finite: np.ndarray, groups: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Each group's sum and number of finite values; both are enough for the mean over any draw of groups."""
    if groups is None:
        return data[finite], np.ones(np.count_nonzero(finite))
    _, index = np.unique(np.asarray(groups)[finite], return_inverse=True)
    return np.bincount(index, data[finite]), np.bincount(index).astype(float)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    rng, means = np.random.default_rng(seed), []
    chunk = max(1, 2_000_000 // len(sums))  # bounds memory for many cases
    for start in range(0, resamples, chunk):
        picks = rng.integers(len(sums), size=(min(chunk, resamples - start), len(sums)))
        means.append(sums[picks].sum(axis=1) / counts[picks].sum(axis=1))
    return np.concatenate(means)


def _corrected(tails: np.ndarray, sums: np.ndarray, counts: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The quantiles that BCa reads in place of `tails` (Efron 1987); `tails` itself where it is undefined."""
    from scipy.special import ndtr, ndtri

    mean = sums.sum() / counts.sum()
    below = (np.count_nonzero(means < mean) + np.count_nonzero(means <= mean)) / (2 * len(means))
    jackknife = (sums.sum() - sums) / (counts.sum() - counts)
    gaps = jackknife.mean() - jackknife
    spread = (gaps**2).sum() ** 1.5
    if not spread or not 0 < below < 1:
        return tails
    bias, acceleration = ndtri(below), (gaps**3).sum() / (6 * spread)
    shifted = bias + ndtri(tails)
    corrected: np.ndarray = ndtr(bias + shifted / (1 - acceleration * shifted))
    return corrected


def _signed_rank_p(gap: np.ndarray) -> float:
    from scipy.stats import rankdata, wilcoxon

    if not len(gap):
        return float("nan")
    gap = gap[gap != 0]
    if not len(gap):
        return 1.0
    if len(gap) > EXACT_UP_TO:
        return float(wilcoxon(gap, method="approx").pvalue)
    doubled = np.rint(2 * rankdata(np.abs(gap))).astype(int)  # tied ranks are halves
    chance = np.ones(1)  # chance[s]: that the positive ranks sum to s/2, if each sign were a coin toss
    for rank in doubled:
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2
    positive = int(doubled[gap > 0].sum())
    return float(min(1.0, 2 * min(chance[: positive + 1].sum(), chance[positive:].sum())))
