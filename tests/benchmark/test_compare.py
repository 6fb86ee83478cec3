"""Figures of the comparison against SciPy, another implementation, or by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from maskmend.benchmark.compare import Condition, compare

METHODS = ("plain", "good", "bad", "odd")


def row(noise: str, method: str, seed: int, dice: float | None, **more) -> dict:
    rate = 0.0 if noise == "clean" else 0.5
    return {
        "data": "d", "noise": noise, "rate": rate, "method": method, "seed": seed,
        "status": "failed" if dice is None else "done", "dice": dice, "image_auroc": None, "image_rank": None,
        "seconds": 10.0, "cpu_seconds": 5.0, "device": "cpu",
    } | more  # fmt: skip


def grid_of(seeds: int, noises: tuple[str, ...] = ("a", "b", "c", "d", "e", "f", "g")) -> list[dict]:
    rng = np.random.default_rng(1)
    gain = {"plain": 0.0, "good": 0.03, "bad": -0.02, "odd": 0.002}
    rows = [row("clean", "plain", s, 0.9 + rng.normal(0, 0.004)) for s in range(seeds)]
    for noise in noises:
        base = rng.uniform(0.6, 0.8)
        for method in METHODS:
            rows += [row(noise, method, s, base + gain[method] + rng.normal(0, 0.01)) for s in range(seeds)]
    return rows


def table(rows: list[dict], noise: str) -> dict[str, np.ndarray]:
    """Dice (seeds,) of each method."""
    return {
        m: np.array([r["dice"] for r in rows if (r["noise"], r["method"]) == (noise, m)]) for m in METHODS
    }


def holm_by_hand(p: dict[str, float]) -> dict[str, float]:
    """Holm 1979 as a step-down: the k-th smallest counts m - k + 1 times and never less than the one before."""
    left, adjusted, before = dict(p), {}, 0.0
    while left:
        name = min(left, key=left.get)
        before = max(before, min(1.0, left[name] * len(left)))
        adjusted[name] = before
        del left[name]
    return adjusted


def test_tests_within_a_condition_are_scipys() -> None:
    rows = grid_of(9)
    compared = compare(rows, "plain")
    for noise in "abc":
        dice = table(rows, noise)
        p = {m: stats.wilcoxon(dice[m], dice["plain"], method="exact").pvalue for m in METHODS[1:]}
        lines = {line.method: line for line in compared.lines[Condition("d", noise, 0.5)]}
        for method in METHODS[1:]:
            test = lines[method].test
            assert test.p == pytest.approx(p[method])
            assert test.difference == pytest.approx((dice[method] - dice["plain"]).mean())
            assert test.low < test.difference < test.high
            assert lines[method].p == pytest.approx(holm_by_hand(p)[method])
        assert lines["plain"].test is None
        assert math.isnan(lines["plain"].p)


def test_tests_over_conditions_take_conditions_as_pairs() -> None:
    rows = grid_of(5)
    compared = compare(rows, "plain")
    means = {m: np.array([table(rows, noise)[m].mean() for noise in "abcdefg"]) for m in METHODS}
    p = {m: stats.wilcoxon(means[m], means["plain"], method="exact").pvalue for m in METHODS[1:]}
    totals = {total.method: total for total in compared.totals}
    for method in METHODS[1:]:
        assert totals[method].test.n == 7
        assert totals[method].test.p == pytest.approx(p[method])
        assert totals[method].p == pytest.approx(holm_by_hand(p)[method])
        assert totals[method].dice == pytest.approx(means[method].mean())


def test_ranks_and_friedman_are_scipys() -> None:
    rows = grid_of(5)
    compared = compare(rows, "plain")
    means = np.array([[table(rows, noise)[m].mean() for m in METHODS] for noise in "abcdefg"])
    ranks = stats.rankdata(-means, axis=1).mean(0)
    assert compared.mean_ranks == pytest.approx(dict(zip(METHODS, ranks, strict=True)))
    assert list(compared.mean_ranks) == sorted(METHODS, key=lambda m: compared.mean_ranks[m])
    assert compared.friedman_p == pytest.approx(stats.friedmanchisquare(*means.T).pvalue)
    assert compared.ranked == 7


def test_ranks_within_a_condition_share_ties() -> None:
    rows = [row("a", m, s, d) for m, d in (("plain", 0.8), ("good", 0.9), ("odd", 0.8)) for s in (0, 1)]
    lines = {line.method: line.rank for line in compare(rows, "plain").lines[Condition("d", "a", 0.5)]}
    assert lines == {"good": 1.0, "plain": 2.5, "odd": 2.5}


def test_recovered_share_by_hand() -> None:
    """Flaws cost 0.10; the method wins back 0.05 of it in a and loses 0.02 more in b, where they cost 0.20."""
    rows = [
        row("clean", "plain", 0, 0.90),
        row("a", "plain", 0, 0.80), row("a", "good", 0, 0.85),
        row("b", "plain", 0, 0.70), row("b", "good", 0, 0.68),
    ]  # fmt: skip
    compared = compare(rows, "plain")
    shares = {
        c.noise: line.recovered
        for c, lines in compared.lines.items()
        for line in lines
        if line.method == "good"
    }
    assert shares == pytest.approx({"a": 0.5, "b": -0.1})
    assert {t.method: t.recovered for t in compared.totals}["good"] == pytest.approx(0.03 / 0.30)


def test_no_share_of_a_gap_that_is_none() -> None:
    rows = [row("clean", "plain", 0, 0.801), row("a", "plain", 0, 0.8), row("a", "good", 0, 0.85)]
    compared = compare(rows, "plain")
    assert math.isnan(compared.lines[Condition("d", "a", 0.5)][0].recovered)
    assert math.isnan(compared.totals[0].recovered)
    assert math.isnan(compare(rows[1:], "plain").totals[0].recovered)  # never run on true masks


def test_only_common_seeds_are_compared() -> None:
    rows = [row("a", "plain", s, 0.5) for s in (0, 1)]
    rows += [row("a", "good", 1, 0.6), row("a", "good", 2, 0.9), row("a", "good", 0, None)]
    lines = {line.method: line for line in compare(rows, "plain").lines[Condition("d", "a", 0.5)]}
    assert lines["good"].test.n == 1
    assert lines["good"].test.difference == pytest.approx(0.1)
    assert (lines["good"].dice.n, lines["good"].failed) == (2, 1)
    assert lines["good"].rank == 1


def test_a_method_that_lacks_a_condition_is_not_ranked() -> None:
    rows = [r for r in grid_of(3) if (r["noise"], r["method"]) != ("c", "odd")]
    compared = compare(rows, "plain")
    assert set(compared.mean_ranks) == {"plain", "good", "bad"}
    assert compared.totals[-1].method == "odd"
    assert compared.totals[-1].conditions == 6


def test_a_method_that_only_failed_is_still_told() -> None:
    rows = [*grid_of(3), *(row("a", "broken", s, None) for s in range(3))]
    compared = compare(rows, "plain")
    line = compared.lines[Condition("d", "a", 0.5)][-1]
    assert (line.method, line.failed, line.dice.n) == ("broken", 3, 0)
    assert {t.method: t.failed for t in compared.totals}["broken"] == 3
    assert set(compared.mean_ranks) == set(METHODS)


def test_intervals_are_of_the_mean() -> None:
    rows = grid_of(8)
    for noise in "ab":
        dice = table(rows, noise)
        for line in compare(rows, "plain").lines[Condition("d", noise, 0.5)]:
            values = dice[line.method]
            assert line.dice.estimate == pytest.approx(values.mean())
            assert values.min() <= line.dice.low < values.mean() < line.dice.high <= values.max()
            spread = 2 * 1.96 * values.std(ddof=1) / np.sqrt(8)
            assert line.dice.high - line.dice.low == pytest.approx(spread, rel=0.35)
    single = compare([row("a", "plain", 0, 0.7)], "plain").lines[Condition("d", "a", 0.5)][0]
    assert single.dice.estimate == 0.7
    assert math.isnan(single.dice.low)


def test_better_and_worse_need_six_seeds() -> None:
    few, many = (compare(grid_of(n), "plain").totals for n in (5, 9))
    assert all(total.better == total.worse == 0 for total in few)
    good = next(total for total in many if total.method == "good")
    assert good.better >= 5
    assert good.worse == 0


def test_cost_on_true_masks_is_tested_apart() -> None:
    rows = grid_of(6) + [row("clean", "good", s, 0.88) for s in range(6)]
    totals = {total.method: total for total in compare(rows, "plain").totals}
    assert totals["good"].clean.n == 6
    assert totals["good"].clean.difference < 0
    assert totals["good"].clean_p == pytest.approx(0.03125)
    assert totals["bad"].clean is None


def test_time_is_that_of_the_process_on_a_cpu_and_of_the_clock_on_a_gpu() -> None:
    def cost(device: str) -> float:
        rows = [
            row("a", "plain", 0, 0.5, device=device, seconds=10.0, cpu_seconds=10.0),
            row("a", "good", 0, 0.5, device=device, seconds=40.0, cpu_seconds=15.0),
        ]
        return next(t.cost for t in compare(rows, "plain").totals if t.method == "good")

    assert cost("cpu") == pytest.approx(1.5)
    assert cost("cuda") == pytest.approx(4.0)


def test_nothing_to_compare() -> None:
    assert compare([], "plain").totals == []
    only_clean = compare([row("clean", "plain", 0, 0.9)], "plain")
    assert only_clean.ranked == 0
    assert math.isnan(only_clean.critical)
