"""What a grid's results say: intervals, ranks, paired tests, recovered shares, critical differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maskmend.benchmark.grid import CLEAN
from maskmend.benchmark.ranks import critical_difference, friedman, ranks_of
from maskmend.evaluate.statistics import Interval, PairedTest, bootstrap_interval, holm, paired_test

NO_GAP = 0.002
"""Dice that flawed masks must cost before a recovered share of it means anything."""

Row = Mapping[str, Any]


class Condition(NamedTuple):
    """One data set with one noise at one rate."""

    data: str
    noise: str
    rate: float

    @property
    def title(self) -> str:
        """For tables."""
        return "true masks" if self.noise == CLEAN else f"{self.noise} {self.rate:.0%}"


@dataclass(frozen=True)
class Line:
    """A method in one condition.

    Args:
        method: its name in the benchmark.
        dice: mean test Dice over seeds with its interval.
        failed: runs that failed.
        rank: mean over seeds of its place among the methods, 1 is best; NaN without a seed that all have.
        test: against the baseline, pairs are seeds; None for the baseline itself.
        p: of `test` after Holm's correction over the methods of the condition.
        recovered: share of the gap between the baseline on these masks and on true ones; NaN without a gap.
        auroc, image_rank: means over seeds, see `trial.judge`.
        seconds: median of training.
    """

    method: str
    dice: Interval
    failed: int
    rank: float
    test: PairedTest | None
    p: float
    recovered: float
    auroc: float
    image_rank: float
    seconds: float


@dataclass(frozen=True)
class Total:
    """A method over all conditions with flawed masks.

    Args:
        method: its name.
        conditions: how many it has results in.
        dice: mean over these of its mean Dice.
        rank: mean rank over the ranked conditions; NaN for a method that lacks one of them.
        test: against the baseline, pairs are conditions.
        p: of `test` after Holm's correction over the methods.
        recovered: of all conditions together: sum of gains over sum of gaps.
        better, worse: conditions whose corrected p is below 0.05, by sign.
        clean: against the baseline on true masks, pairs are data set and seed; None when it was not run there.
        clean_p: of `clean` after Holm's correction.
        auroc, image_rank: means over conditions.
        cost: median over conditions of its training time relative to the baseline's.
        failed: runs that failed.
    """

    method: str
    conditions: int
    dice: float
    rank: float
    test: PairedTest | None
    p: float
    recovered: float
    better: int
    worse: int
    clean: PairedTest | None
    clean_p: float
    auroc: float
    image_rank: float
    cost: float
    failed: int


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Args:
        lines: by condition, the best mean Dice first.
        totals: the best mean rank first, unranked methods last.
        ranked: number of conditions behind the ranks.
        friedman_p: that all ranked methods are alike; NaN with fewer than three methods or two conditions.
        critical: mean ranks closer than this are not told apart (Nemenyi, 5 %); NaN likewise.
        baseline: what the tests compare with.
    """

    lines: Mapping[Condition, Sequence[Line]]
    totals: Sequence[Total]
    ranked: int
    friedman_p: float
    critical: float
    baseline: str

    @property
    def mean_ranks(self) -> dict[str, float]:
        """Of the ranked methods, best first."""
        return {total.method: total.rank for total in self.totals if math.isfinite(total.rank)}


Scores = dict[Condition, dict[str, dict[int, Row]]]


def compare(rows: Sequence[Row], baseline: str) -> Comparison:
    """Compare the methods of a grid.

    Args:
        rows: one per run, with data, noise, rate, method, seed, status, dice, image_auroc, image_rank and seconds.
        baseline: the method that the others are tested against.
    """
    scores, failed = _grouped(rows)
    lines = {
        condition: _lines(condition, scores, failed, baseline)
        for condition in sorted(failed.keys() | scores.keys(), key=_order)
    }
    means = _condition_means({c: found for c, found in scores.items() if c.noise != CLEAN})
    ranks = ranks_of(np.array([list(row.values()) for row in means.values()]))
    methods = list(next(iter(means.values()))) if means else []
    totals = _totals(lines, scores, dict(zip(methods, ranks.mean(0), strict=True)) if means else {}, baseline)
    return Comparison(
        lines, totals, len(means), friedman(ranks), critical_difference(*ranks.shape[::-1]), baseline
    )


def _grouped(rows: Sequence[Row]) -> tuple[Scores, dict[Condition, dict[str, int]]]:
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    failed: dict[Condition, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        condition = Condition(row["data"], row["noise"], row["rate"])
        failed[condition][row["method"]] += row["status"] == "failed"
        if row["status"] == "done" and row["dice"] is not None:
            scores[condition][row["method"]][row["seed"]] = row
    return scores, failed


def _order(condition: Condition) -> tuple[Any, ...]:
    return condition.data, condition.noise != CLEAN, condition.noise, condition.rate


def _lines(
    condition: Condition, scores: Scores, failed: Mapping[Condition, Mapping[str, int]], baseline: str
) -> list[Line]:
    found = scores.get(condition, {})
    plain = found.get(baseline, {})
    clean = scores.get(Condition(condition.data, CLEAN, 0.0), {}).get(baseline, {})
    ranks = _seed_ranks(found)
    tests = {method: _paired(runs, plain) for method, runs in found.items() if method != baseline and plain}
    adjusted = holm({method: test.p for method, test in tests.items()})
    lines = [
        Line(
            method=method,
            dice=bootstrap_interval([row["dice"] for row in found.get(method, {}).values()]),
            failed=failures,
            rank=ranks.get(method, float("nan")),
            test=tests.get(method),
            p=adjusted.get(method, float("nan")),
            recovered=_recovered(found.get(method, {}), plain, clean) if condition.noise != CLEAN else float("nan"),
            auroc=_mean_of(found.get(method, {}), "image_auroc"),
            image_rank=_mean_of(found.get(method, {}), "image_rank"),
            seconds=_median([row["seconds"] for row in found.get(method, {}).values()]),
        )
        for method, failures in failed[condition].items()
    ]  # fmt: skip
    return sorted(lines, key=lambda line: -line.dice.estimate if line.dice.n else math.inf)


def _paired(own: Mapping[int, Row], plain: Mapping[int, Row]) -> PairedTest:
    seeds = sorted(set(own) & set(plain))
    return paired_test([own[s]["dice"] for s in seeds], [plain[s]["dice"] for s in seeds])


def _gain_and_gap(
    own: Mapping[int, Row], plain: Mapping[int, Row], clean: Mapping[int, Row]
) -> tuple[float, float]:
    """Dice won over the baseline, and Dice that the flaws cost it, over the seeds that all have; NaN without one."""
    seeds = set(own) & set(plain) & set(clean)
    mine, low, high = (_mean([runs[s]["dice"] for s in seeds]) for runs in (own, plain, clean))
    return mine - low, high - low


def _recovered(own: Mapping[int, Row], plain: Mapping[int, Row], clean: Mapping[int, Row]) -> float:
    gain, gap = _gain_and_gap(own, plain, clean)
    return gain / gap if gap > NO_GAP else float("nan")


def _seed_ranks(found: Mapping[str, Mapping[int, Row]]) -> dict[str, float]:
    """Mean rank over the seeds that every method has."""
    seeds = set.intersection(*(set(runs) for runs in found.values())) if found else set()
    if not seeds:
        return {}
    table = np.array([[found[method][seed]["dice"] for method in found] for seed in sorted(seeds)])
    return dict(zip(found, ranks_of(table).mean(0), strict=True))


def _condition_means(scores: Scores) -> dict[Condition, dict[str, float]]:
    """Mean Dice over common seeds of the methods that every condition has."""
    filled = {condition: found for condition, found in scores.items() if found}
    if not filled:
        return {}
    everywhere = set.intersection(*(set(found) for found in filled.values()))
    names = [name for name in next(iter(filled.values())) if name in everywhere]
    means = {}
    for condition, found in filled.items():
        seeds = set.intersection(*(set(found[name]) for name in names)) if names else set()
        if seeds:
            means[condition] = {name: _mean([found[name][s]["dice"] for s in seeds]) for name in names}
    return means


def _totals(
    lines: Mapping[Condition, Sequence[Line]], scores: Scores, ranks: Mapping[str, float], baseline: str
) -> list[Total]:
    noisy = {c: found for c, found in scores.items() if c.noise != CLEAN}
    methods = list(dict.fromkeys(line.method for found in lines.values() for line in found))
    tests = {m: _over_conditions(m, noisy, baseline) for m in methods if m != baseline}
    adjusted = holm({m: test.p for m, test in tests.items()})
    clean = {m: _on_clean(m, scores, baseline) for m in methods if m != baseline}
    clean_adjusted = holm({m: test.p for m, test in clean.items() if test.n})
    totals = []
    for method in methods:
        own = [(c, line) for c, found in lines.items() for line in found if line.method == method]
        flawed = [line for c, line in own if c.noise != CLEAN and line.dice.n]
        decided = [line.test.difference for line in flawed if line.test and line.p < 0.05]
        gains = [_gains(c, method, scores, baseline) for c in noisy if method in noisy[c]]
        totals.append(
            Total(
                method=method,
                conditions=len(flawed),
                dice=_mean([line.dice.estimate for line in flawed]),
                rank=ranks.get(method, float("nan")),
                test=tests.get(method),
                p=adjusted.get(method, float("nan")),
                recovered=_share(gains) if method != baseline else float("nan"),
                better=sum(difference > 0 for difference in decided),
                worse=sum(difference < 0 for difference in decided),
                clean=clean[method] if method in clean and clean[method].n else None,
                clean_p=clean_adjusted.get(method, float("nan")),
                auroc=_mean([line.auroc for line in flawed]),
                image_rank=_mean([line.image_rank for line in flawed]),
                cost=_cost(method, noisy, baseline),
                failed=sum(line.failed for _, line in own),
            )
        )
    return sorted(totals, key=lambda one: (not math.isfinite(one.rank), one.rank, -np.nan_to_num(one.dice)))


def _over_conditions(method: str, noisy: Scores, baseline: str) -> PairedTest:
    """One pair per condition, its mean over common seeds: seeds share their test cases and are no more pairs."""
    pairs = []
    for found in noisy.values():
        seeds = set(found.get(method, {})) & set(found.get(baseline, {}))
        if seeds:
            pairs.append([_mean([found[name][s]["dice"] for s in seeds]) for name in (method, baseline)])
    return paired_test([a for a, _ in pairs], [b for _, b in pairs])


def _on_clean(method: str, scores: Scores, baseline: str) -> PairedTest:
    pairs = [
        (found[method][seed]["dice"], found[baseline][seed]["dice"])
        for condition, found in scores.items()
        if condition.noise == CLEAN and method in found and baseline in found
        for seed in set(found[method]) & set(found[baseline])
    ]
    return paired_test([a for a, _ in pairs], [b for _, b in pairs])


def _gains(condition: Condition, method: str, scores: Scores, baseline: str) -> tuple[float, float]:
    clean = scores.get(Condition(condition.data, CLEAN, 0.0), {}).get(baseline, {})
    return _gain_and_gap(scores[condition][method], scores[condition].get(baseline, {}), clean)


def _share(gains: Sequence[tuple[float, float]]) -> float:
    known = [(gain, gap) for gain, gap in gains if math.isfinite(gain) and math.isfinite(gap)]
    gap = sum(gap for _, gap in known)
    return sum(gain for gain, _ in known) / gap if gap > NO_GAP * max(len(known), 1) else float("nan")


def _cost(method: str, noisy: Scores, baseline: str) -> float:
    ratios = []
    for found in noisy.values():
        own, plain = (
            _median([_effort(row) for row in found.get(m, {}).values()]) for m in (method, baseline)
        )
        if math.isfinite(own) and plain > 0:
            ratios.append(own / plain)
    return _median(ratios)


def _effort(row: Row) -> float:
    """Seconds of training; on a CPU those of the process itself, which other processes do not lengthen."""
    key = "cpu_seconds" if row.get("device") == "cpu" and row.get("cpu_seconds") else "seconds"
    return float(row[key])


def _mean_of(runs: Mapping[int, Row], key: str) -> float:
    return _mean([row[key] for row in runs.values() if row.get(key) is not None])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")
