"""Intervals and tests against SciPy and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from maskmend.errors import UsageError
from maskmend.evaluate.statistics import bootstrap_interval, holm, paired_test


@pytest.mark.parametrize(("ours", "theirs"), [("bca", "BCa"), ("percentile", "percentile")])
def test_interval_agrees_with_scipy(ours: str, theirs: str) -> None:
    values = np.random.default_rng(3).beta(8, 1.5, size=40)  # skewed like Dice
    mine = bootstrap_interval(values, resamples=40_000, method=ours)
    rng = np.random.default_rng(1)
    result = stats.bootstrap((values,), np.mean, n_resamples=40_000, method=theirs, rng=rng)
    spread = mine.high - mine.low
    assert mine.estimate == pytest.approx(values.mean())
    assert mine.low == pytest.approx(result.confidence_interval.low, abs=0.02 * spread)
    assert mine.high == pytest.approx(result.confidence_interval.high, abs=0.02 * spread)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(size=30), resamples=500, seed=i) for i in range(400)]
    assert 0.90 < np.mean([i.low < 0 < i.high for i in intervals]) < 0.98


def test_groups_widen_the_interval_as_their_likeness_demands() -> None:
    patients = np.random.default_rng(0).normal(size=30)
    copies, names = np.repeat(patients, 4), [f"p{i}" for i in range(30) for _ in range(4)]
    alone = bootstrap_interval(patients, resamples=4000)
    grouped = bootstrap_interval(copies, resamples=4000, groups=names)
    naive = bootstrap_interval(copies, resamples=4000)
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert naive.high - naive.low == pytest.approx((alone.high - alone.low) / 2, rel=0.1)


def test_interval_is_seeded() -> None:
    values = np.arange(10.0)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_interval_of_next_to_nothing() -> None:
    assert bootstrap_interval([]).n == 0
    assert np.isnan(bootstrap_interval([]).estimate)
    one = bootstrap_interval([0.7, float("nan")])
    assert (one.estimate, one.n) == (0.7, 1)
    assert np.isnan(one.low)
    same = bootstrap_interval([0.5] * 6)
    assert (same.low, same.high) == (0.5, 0.5)


def test_interval_refuses_nonsense() -> None:
    with pytest.raises(UsageError):
        bootstrap_interval([1, 2], level=95)
    with pytest.raises(UsageError):
        bootstrap_interval([1, 2], method="bayes")


@pytest.mark.parametrize("n", [3, 5, 8, 20, 50])
def test_p_is_wilcoxons_without_ties(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.4, 1, n), rng.normal(0, 1, n)
    assert paired_test(a, b).p == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)


def test_p_is_exact_with_ties() -> None:
    gap = np.array([1, 1, -1, 2, 2, 3, 0, -2])
    ranks = stats.rankdata(np.abs(gap[gap != 0]))
    sums = np.array([ranks @ signs for signs in itertools.product((0, 1), repeat=len(ranks))])
    seen = ranks[gap[gap != 0] > 0].sum()
    expected = min(1, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))
    result = paired_test(gap, np.zeros(8))
    assert result.p == pytest.approx(expected)
    assert (result.n, result.n_different) == (8, 7)


def test_ties_survive_rounding() -> None:
    assert paired_test([0.3, 0.9, 0.5], [0.1, 0.7, 0.7]).p == paired_test([3, 9, 5], [1, 7, 7]).p


def test_five_seeds_cannot_reach_five_percent() -> None:
    result = paired_test([0.9, 0.91, 0.92, 0.93, 0.94], [0.1, 0.2, 0.3, 0.4, 0.45])
    assert result.p == result.smallest_p == 0.0625
    assert result.low < result.difference < result.high


def test_many_pairs_agree_with_the_exact_value_at_the_border() -> None:
    rng = np.random.default_rng(0)
    gap = rng.normal(0.1, 1, 201)
    exact = stats.wilcoxon(gap, method="exact").pvalue
    assert paired_test(gap, np.zeros(201)).p == pytest.approx(exact, rel=0.02)


def test_paired_test_of_next_to_nothing() -> None:
    assert paired_test([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert np.isnan(paired_test([], []).p)
    assert paired_test([1.0, float("nan")], [0.0, 1.0]).n == 1
    with pytest.raises(UsageError):
        paired_test([1.0], [1.0, 2.0])


def test_holm_against_scipys_definition() -> None:
    # Worked example: sorted p times (m - rank), made monotone.
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    nan = float("nan")
    assert holm({1: 0.5, 2: nan, 3: 0.9})[1] == 1.0
    assert np.isnan(holm({1: 0.5, 2: nan})[2])
