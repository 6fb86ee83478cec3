"""From cases to raters: means, biases and intervals over a data set, and the cases to talk about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from maskmend.audit.agreement import CaseAgreement, RaterCase
from maskmend.evaluate.statistics import Interval, bootstrap_interval

RESAMPLES = 1000
ODD_BY = 0.15
"""Mean Dice by which one rater falls short of what the others reach among themselves, to be called the odd one out."""


@dataclass(frozen=True)
class RaterFigures:
    """One rater over all cases that he or she drew together with others; means with 95 % bootstrap intervals.

    Args:
        name: of the rater.
        cases: drawn by this rater and at least one other.
        dice_others: mean Dice with each of the other raters.
        dice_vote: Dice with the vote of the others.
        offset: signed distance by which the outline lies outside that of the vote, in `RaterReport.unit`.
        offset_by_class: the same for each class.
        distance: average symmetric surface distance to the vote.
        scatter: standard deviation of the offset over cases: how steadily the rater keeps to his or her own rule.
        sensitivity, precision: share of the vote's voxels drawn, and of the drawn voxels in the vote.
        volume_ratio: drawn over the vote's volume, geometric mean.
        missed, alone: cases in which this rater drew nothing of a class that the vote has, and the reverse.
        dice_given: Dice with the given label, where the data set has one that is no rater's.
    """

    name: str
    cases: int
    dice_others: Interval
    dice_vote: Interval
    offset: Interval
    offset_by_class: dict[str, Interval]
    distance: Interval
    scatter: float
    sensitivity: float
    precision: float
    volume_ratio: float
    missed: int
    alone: int
    dice_given: Interval | None = None


@dataclass(frozen=True)
class PairTotals:
    """Two raters over all cases that both drew."""

    first: str
    second: str
    cases: int
    dice: Interval
    kappa: Interval
    distance: Interval


@dataclass(frozen=True)
class Dispute:
    """A case to talk about.

    Args:
        case: id.
        priority: how close the vote is, in [0, 1]; see `CaseAgreement.close`.
        dice: mean over pairs and classes.
        fleiss: kappa.
        disputed: voxels on which not all agree.
        odd: the rater who stands apart while the others agree, "" for none.
        reason: one sentence.
        place: array index of the thickest disputed part.
        raters: how many drew the case.
    """

    case: str
    priority: float
    dice: float
    fleiss: float
    disputed: int
    odd: str
    reason: str
    place: tuple[int, ...] | None
    raters: int


def interval(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """Mean and 95 % bootstrap interval over groups of cases."""
    return bootstrap_interval(values, resamples=RESAMPLES, groups=list(groups))


def mean_of(agreement: CaseAgreement, figure: str) -> float:
    """Mean of a figure of pairs over pairs and classes."""
    return _mean([value for pair in agreement.pairs.values() for value in getattr(pair, figure).values()])


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def pair_totals(agreements: Sequence[CaseAgreement], groups: Sequence[str]) -> Iterable[PairTotals]:
    """Each pair of raters over the cases that both drew; `groups` says which cases belong together."""
    for first, second in dict.fromkeys(pair for one in agreements for pair in one.pairs):
        drawn = [(one.pairs[first, second], group) for one, group in zip(agreements, groups, strict=True)
                 if (first, second) in one.pairs]  # fmt: skip
        own = [group for _, group in drawn]
        yield PairTotals(
            first, second, len(drawn),
            interval([_mean(pair.dice.values()) for pair, _ in drawn], own),
            interval([pair.kappa for pair, _ in drawn], own),
            interval([_mean(pair.distance_mm.values()) for pair, _ in drawn], own),
        )  # fmt: skip


def rater_figures(name: str, agreements: Sequence[CaseAgreement], groups: Sequence[str]) -> RaterFigures:
    """One rater over the cases that he or she drew."""
    own = [(one, group) for one, group in zip(agreements, groups, strict=True) if name in one.each]
    others = [
        _mean(value for pair, figures in one.pairs.items() if name in pair for value in figures.dice.values())
        for one, _ in own
    ]
    found = figures_of(name, [one.each[name] for one, _ in own], [group for _, group in own], others)
    with_given = [(one, group) for one, group in own if one.given is not None]
    if not with_given:
        return found
    dice = [one.dice_given[name] for one, _ in with_given]
    return replace(found, dice_given=interval(dice, [group for _, group in with_given]))


def figures_of(
    name: str, cases: Sequence[RaterCase], groups: Sequence[str], dice_others: Sequence[float]
) -> RaterFigures:
    """Figures of one rater from his or her cases; `dice_others` is the mean Dice with the others in each."""

    def over(figure: str) -> list[float]:
        return [_mean(getattr(one, figure).values()) for one in cases]

    classes = list(cases[0].dice)
    offsets = np.array(over("offset_mm"))
    finite = offsets[np.isfinite(offsets)]
    return RaterFigures(
        name,
        len(cases),
        interval(dice_others or [float("nan")], groups if dice_others else ["none"]),
        interval(over("dice"), groups),
        interval(offsets.tolist(), groups),
        {key: interval([one.offset_mm[key] for one in cases], groups) for key in classes},
        interval(over("distance_mm"), groups),
        float(finite.std(ddof=1)) if len(finite) > 1 else float("nan"),
        _mean(over("sensitivity")),
        _mean(over("precision")),
        _volume_ratio(cases),
        sum(one.others[key] and not one.drew[key] for one in cases for key in classes),
        sum(one.drew[key] and not one.others[key] for one in cases for key in classes),
    )


def _volume_ratio(cases: Sequence[RaterCase]) -> float:
    """Geometric mean of drawn over voted volume, which sensitivity and precision give away: s / p."""
    logs = [
        np.log(one.sensitivity[key] / one.precision[key])
        for one in cases for key in one.dice
        if one.drew[key] and one.others[key] and one.sensitivity[key] > 0
    ]  # fmt: skip
    return float(np.exp(np.mean(logs))) if logs else float("nan")


def dispute_of(one: CaseAgreement) -> Dispute:
    """How much there is to talk about in a case, and what it is."""
    by_rater = {
        name: _mean(v for pair, figures in one.pairs.items() if name in pair for v in figures.dice.values())
        for name in one.raters
    }
    odd = _odd_one(one)
    reason = _reason(one, odd, by_rater)
    return Dispute(
        one.case,
        one.close,
        mean_of(one, "dice"),
        one.fleiss,
        one.disputed,
        odd,
        reason,
        one.place,
        len(one.raters),
    )


def _odd_one(one: CaseAgreement) -> str:
    """The rater without whom the others agree far better."""
    if len(one.raters) < 3:
        return ""
    gains = {}
    for name in one.raters:
        own = _mean(v for pair, f in one.pairs.items() if name in pair for v in f.dice.values())
        rest = _mean(v for pair, f in one.pairs.items() if name not in pair for v in f.dice.values())
        gains[name] = rest - own
    best = max(gains, key=lambda name: gains[name] if np.isfinite(gains[name]) else -1.0)
    return best if gains[best] > ODD_BY else ""


def _reason(one: CaseAgreement, odd: str, by_rater: Mapping[str, float]) -> str:
    classes = list(next(iter(one.each.values())).drew)
    for name in classes:
        drew = sum(each.drew[name] for each in one.each.values())
        if 0 < drew < len(one.raters):
            return f"{drew} of {len(one.raters)} raters drew {name}"
    if odd:
        return f"{odd} differs from the others (mean Dice {by_rater[odd]:.2f})"
    low = min(one.pairs, key=lambda pair: _mean(one.pairs[pair].dice.values()))
    return f"least agreement: {low[0]} and {low[1]} (Dice {_mean(one.pairs[low].dice.values()):.2f})"
