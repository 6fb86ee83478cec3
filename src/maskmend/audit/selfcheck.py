"""The audit's exam: fresh errors made on purpose in believed masks, judged like any other case.

It says how far the figures can be trusted on *this* data set with *these* models, and gives the estimated Dice its
interval. It is an exam on made-up errors: those of people may be harder or easier to see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from maskmend.audit.components import parts, sole
from maskmend.audit.estimate import AGREED, Auditor, Looks, Opinion, mask_dice, mean_dice
from maskmend.audit.injection import inject, invented
from maskmend.audit.kinds import case_kind
from maskmend.audit.record import Kind
from maskmend.audit.shape import ball_radius
from maskmend.audit.suggest import suggest
from maskmend.fanout import Mapper, in_turn

CASES = 100
PER_CASE = 2
LEVEL = 0.9
NEIGHBOURS = 40
PARTS = 5  # of a class and answer
UNSEEN = 5.0  # answers beside those of parts, of which the exam sees few
INEXACT = (1 - AGREED) / 2  # two annotators agree so far, so each of them is off by half of the rest
WEAK = 0.8
"""AUROC of the exam below which the audit's counts are not believed: models that cannot tell made-up errors from sound
masks find none anywhere, and so report none."""

Pair = tuple[int, float, float]
"""Index of a class, estimated Dice, true Dice."""


@dataclass(frozen=True)
class Answer:
    """One mask of the exam.

    Args:
        quality, true_quality: estimated and true Dice.
        odds: log odds that it is flawed.
        kind, true_kind: of its error; "sound" for masks as given.
        mended: true Dice of the suggested mask.
        noise, wrong: expected and true number of wrong voxels.
        classes: (index, estimated Dice, true Dice) of each class that has both.
        parts: the same of connected parts of classes that have several, at most 5 of a class.
        apart: the same of those that are doubted as a whole.
    """

    quality: float
    true_quality: float
    odds: float
    kind: Kind
    true_kind: Kind
    mended: float
    noise: float
    wrong: int
    classes: tuple[Pair, ...] = ()
    parts: tuple[Pair, ...] = ()
    apart: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Pairs:
    """Estimated and true Dice of many masks or parts of masks.

    Args:
        index: (N,) of the class. estimated: (N,). off: (N,) by how much the true one is above it.
        weight: (N,) what each stands for.
    """

    index: np.ndarray
    estimated: np.ndarray
    off: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[Pair], weight: Sequence[float]) -> Pairs:
        """From pairs, each with its weight."""
        index, estimated, true = np.array(pairs, float).reshape(-1, 3).T
        return cls(index, estimated, true - estimated, np.array(weight, float))

    def of_class(self, index: int) -> Pairs:
        """Those of a class; all where it has so few that they say little."""
        own = self.index == index
        if own.sum() < NEIGHBOURS:
            return self
        return Pairs(self.index[own], self.estimated[own], self.off[own], self.weight[own])

    def interval(self, quality: float, unseen: float = 0.0) -> tuple[float, float]:
        """The 90 % interval of the true Dice where the estimated one is `quality`, by the 40 nearest.

        Args:
            quality: the estimated Dice.
            unseen: so many more answers are thinkable beside all of these: all right, as often as the estimate says,
                or all wrong. Few answers say little beside them.
        """
        if not len(self.estimated):
            return 0.0, 1.0
        near = np.argsort(np.abs(self.estimated - quality), kind="stable")[:NEIGHBOURS]
        off, weight = self.off[near], self.weight[near]
        if unseen:
            each = unseen * float(weight.mean()) * len(near) / len(self.off)
            off = np.append(off, [1 - quality, -quality])
            weight = np.append(weight, [each * quality, each * (1 - quality)])
        low, high = (_quantile(off, weight, (1 + side * LEVEL) / 2) for side in (-1, 1))
        return float(np.clip(quality + min(low, 0), 0, 1)), float(np.clip(quality + max(high, 0), 0, 1))


@dataclass(frozen=True)
class SelfCheck:
    """All answers with their weights, which stand for the estimated share of flawed cases.

    Args:
        answers: to all masks. rate: the estimated share of flawed cases.
        inexact: Dice by which intervals are wider either way, because what the exam takes for true masks are not exact.
    """

    answers: tuple[Answer, ...]
    rate: float
    inexact: float = 0.0

    @classmethod
    def of(
        cls,
        auditor: Auditor,
        looks: Looks,
        ids: Sequence[str],
        seed: int = 0,
        *,
        backing: float = 1.0,
        over: Mapper = in_turn,
    ) -> SelfCheck:
        """Examine an auditor on at most 100 of the cases with these ids, whose masks are believed.

        Args:
            auditor: fitted.
            looks: opens cases.
            ids: of all cases.
            seed: decides which are taken, and the errors made in them.
            backing: how far the images bear out the models, see `Opinion.backed`.
            over: spreads the cases; other processes need `looks` that can be pickled.
        """
        rng = np.random.default_rng([seed, 20])
        chosen = [ids[i] for i in sorted(rng.permutation(len(ids))[:CASES])]
        found = over(partial(_examined, auditor, looks, seed, backing), list(enumerate(chosen)))
        answers = tuple(answer for some in found for answer in some)
        return cls(answers, auditor.population.rate, (1 - backing) * INEXACT)

    def interval(self, quality: float) -> tuple[float, float]:
        """The 90 % interval of the true Dice of a mask whose estimated one is `quality`."""
        return self._wider(self._cases.interval(quality))

    def class_interval(self, index: int, dice: float) -> tuple[float, float]:
        """The same of a class by itself."""
        return self._wider(self._classes.of_class(index).interval(dice))

    def part_interval(self, index: int, dice: float, apart: bool) -> tuple[float, float]:
        """The same of one of several connected parts of a class.

        Args:
            index: of the class. dice: estimated.
            apart: the part is doubted as a whole. It is right or wrong, which has intervals of another kind.
        """
        pairs = self._apart if apart else self._parts
        return self._wider(pairs.of_class(index).interval(dice, UNSEEN))

    def _wider(self, ends: tuple[float, float]) -> tuple[float, float]:
        return max(ends[0] - self.inexact, 0.0), min(ends[1] + self.inexact, 1.0)

    @cached_property
    def _cases(self) -> Pairs:
        pairs = [(0, one.quality, one.true_quality) for one in self.answers]
        return Pairs.of(pairs, self._weights().tolist())

    @cached_property
    def _classes(self) -> Pairs:
        return self._weighed([one.classes for one in self.answers])

    @cached_property
    def _parts(self) -> Pairs:
        return self._weighed([one.parts for one in self.answers])

    @cached_property
    def _apart(self) -> Pairs:
        return self._weighed([one.apart for one in self.answers])

    def _weighed(self, each: Sequence[Sequence[Pair]]) -> Pairs:
        told = list(zip(each, self._weights().tolist(), strict=True))
        return Pairs.of(
            [one for pairs, _ in told for one in pairs], [weight for pairs, weight in told for _ in pairs]
        )

    def facts(self) -> dict[str, Any]:
        """How well the exam went; empty when no mask was believed."""
        wrong = [one for one in self.answers if one.true_kind != "sound"]
        sound = [one for one in self.answers if one.true_kind == "sound"]
        if len(wrong) < 5 or len(sound) < 5:
            return {}
        qualities = np.array([(one.quality, one.true_quality) for one in wrong])
        named = [one for one in wrong if one.kind != "sound"]
        return {
            "masks": len(self.answers),
            "auroc": round(_auroc([one.odds for one in wrong], [one.odds for one in sound]), 4),
            "dice_correlation": round(float(np.corrcoef(qualities.T)[0, 1]), 4)
            if np.ptp(qualities, axis=0).min() > 0
            else None,
            "kind_accuracy": round(float(np.mean([one.kind == one.true_kind for one in named])), 4)
            if named
            else None,
            "flawed_dice": round(float(qualities[:, 1].mean()), 4),
            "mended_dice": round(float(np.mean([one.mended for one in wrong])), 4),
            "sound_mended_dice": round(float(np.mean([one.mended for one in sound])), 4),
            "expected_wrong": round(sum(one.noise for one in wrong)),
            "true_wrong": sum(one.wrong for one in wrong),
        }

    def _weights(self) -> np.ndarray:
        sound = np.array([one.true_kind == "sound" for one in self.answers], bool)
        return np.where(sound, (1 - self.rate) / max(sound.sum(), 1), self.rate / max((~sound).sum(), 1))


def weakness(check: Mapping[str, Any]) -> str:
    """A warning where the exam (`SelfCheck.facts`) went badly or could not be held, else nothing."""
    if not check:
        return (
            "Too few masks could be examined to say how far these figures can be trusted: take the order of cases as a "
            "hint, not their number."
        )
    if check["auroc"] >= WEAK:
        return ""
    return (
        f"The models are too weak to count errors: a flawed mask made on purpose ranks above a sound one in "
        f"{100 * check['auroc']:.0f} % of pairs only (50 % is chance). Take the order of cases as a hint, not their "
        f"number, and train better: train.steps, audit.folds, more cases."
    )


def _examined(
    auditor: Auditor, looks: Looks, seed: int, backing: float, item: tuple[int, str]
) -> list[Answer]:
    """The answers to a case as given and with errors; none where its mask is not believed."""
    number, case = item
    look, rng = next(looks([case])).thinned(), np.random.default_rng([seed, 21, number])
    opinion = auditor.judge(look)
    if opinion.flawed >= 0.5:
        return []
    answers = [_answer(opinion, backing, look.label, "sound")]
    if opinion.evidence.blank:
        radius_mm = ball_radius(auditor.population.usual.volume, look.label.ndim)
        spoilt = auditor.judge(invented(look, radius_mm, rng))
        return [*answers, _answer(spoilt, backing, np.zeros_like(spoilt.look.label), "invented object")]
    for _ in range(PER_CASE):
        if error := inject(look, rng):
            wrong = auditor.judge(look.with_label(error[0]))
            answers.append(_answer(wrong, backing, look.label, error[1]))
    return answers


def _answer(opinion: Opinion, backing: float, truth: np.ndarray, true_kind: Kind) -> Answer:
    classes, label = opinion.look.classes, opinion.look.label
    suggested, opinion = suggest(opinion), opinion.backed(backing)
    estimated, true = opinion.dice(suggested), mask_dice(label, truth, classes)
    of_parts = list(_of_parts(opinion, suggested, truth))
    return Answer(
        quality=mean_dice(estimated),
        true_quality=mean_dice(true),
        odds=opinion.odds,
        kind=case_kind(opinion, suggested)[0],
        true_kind=true_kind,
        mended=mean_dice(mask_dice(suggested, truth, classes)),
        noise=opinion.look.each * float(opinion.noise.sum()),
        wrong=opinion.look.each * int((label != truth).sum()),
        classes=_pairs(enumerate(zip(estimated, true, strict=True), 1)),
        parts=_pairs(pair for apart, pair in of_parts if not apart),
        apart=_pairs(pair for apart, pair in of_parts if apart),
    )


def _pairs(found: Iterable[tuple[int, tuple[float, float]]]) -> tuple[Pair, ...]:
    """Those that have both an estimated and a true Dice."""
    return tuple(
        (index, round(float(a), 4), round(float(b), 4))
        for index, (a, b) in found
        if np.isfinite(a) and np.isfinite(b)
    )


def _of_parts(
    opinion: Opinion, suggested: np.ndarray, truth: np.ndarray
) -> Iterator[tuple[bool, tuple[int, tuple[float, float]]]]:
    """Of each class with several parts some of all sizes.

    Yields:
        Whether it is doubted as a whole; index of its class, and estimated and true Dice.
    """
    look = opinion.look
    for index in range(1, look.classes):
        every = list(parts(look.label, suggested, index, look.spacing_mm))
        if sole(every):
            continue
        for part in every[:: -(-len(every) // PARTS) or 1]:
            true = mask_dice(part.within(look.label), part.within(truth), look.classes)[index - 1]
            yield part.apart, (index, (part.dice(opinion, suggested), true if np.isfinite(true) else 1.0))


def _auroc(flawed: Sequence[float], sound: Sequence[float]) -> float:
    """The share of pairs in which the flawed one has the higher odds; equal ones count one half."""
    first, second = np.array(flawed)[:, None], np.array(sound)
    return float(((first > second) + (first == second) / 2).mean())


def _quantile(values: np.ndarray, weight: np.ndarray, level: float) -> float:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][min(int(np.searchsorted(total, level * total[-1])), len(values) - 1)])
