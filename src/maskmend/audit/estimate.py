"""Fit the audit to a data set, then judge its cases one at a time: memory holds one case, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np

from maskmend.audit import calibration, population, voxels
from maskmend.audit.calibration import Calibration
from maskmend.audit.evidence import Evidence, gather
from maskmend.audit.injection import inject
from maskmend.audit.look import LEAST, Look
from maskmend.audit.objects import Objects
from maskmend.audit.population import Judge
from maskmend.audit.voxels import VoxelJudge, VoxelSample
from maskmend.fanout import Mapper, in_turn

FIT_ON = 400  # cases; more sharpen nothing
INJECTED = 200  # errors made on purpose in all
MOST_INJECTED = 6  # per case
TRIES = 4  # to make an error in outlines
MOST_LONE = 0.9  # of an error may be objects that one side has alone; more is none in outlines
LEAST_LOST = 0.02
WRONG_IF_FLAWED = (
    0.2  # of what a lost model contradicts, where the mask is flawed; anything between .1 and .3 would do
)
WAVER = (
    0.4  # share of the ordinary disagreement that is the mask's: fits injected flaws and a crowd's masks best
)
AGREED = 0.85  # usual overlap of mask and model above which the rest may be the mask's, as among annotators
POOR = 0.5  # of what speaks against a mask, for a model that is lost: it is off about as often as the mask
FORGIVEN = 0.1  # P(flawed) below which what speaks against a mask begins to be forgiven; all of it at 0
DOUBTS_COUNT = 0.5  # of a map, where no image bears out the models; .25 to .75 fit a crowd's errors alike
GLIMPSED = 0.1  # probability from which an object that only the model sees is perhaps a class left out
BELIEVABLE = 0.05  # trust below which nothing is learnt from a case

OUTLINES = ("over-drawn", "under-drawn", "shifted")

Result = TypeVar("Result")

Looks = Callable[[Sequence[str]], Iterator[Look]]
"""Gives the looks of the cases with these ids, in this order; asked several times."""


@dataclass(frozen=True)
class Opinion:
    """What the audit thinks of one case.

    Args:
        look: with calibrated probabilities.
        evidence: the figures it rests on.
        odds: log odds that the case is flawed.
        lost: how likely the model's verdict says nothing about this image.
        noise: (*B) float32, how likely each voxel's label is wrong.
        usual_overlap: of sound masks with their models, see `overlaps`.
        doubt: by how many spreads the model's doubts about this image are above the usual.
        rate: how likely such a case is flawed, as far as is known without the model, see `Judge.beforehand`.
        backing: how far the images bear out what the models say of this data set's masks, in [0, 1].
    """

    look: Look
    evidence: Evidence
    odds: float
    lost: float
    noise: np.ndarray
    usual_overlap: float = 1.0
    doubt: float = 0.0
    rate: float = 0.0
    backing: float = 1.0

    @property
    def flawed(self) -> float:
        """Probability that the case has an error."""
        return float(population.sigmoid(np.float64(self.odds)))

    def lost_by(self, more: float) -> Opinion:
        """The opinion when the model is lost on this image with this probability, beside what was known of that."""
        noise = self.noise
        if more > LEAST_LOST:
            blind = self.rate * WRONG_IF_FLAWED * (1 - self.look.given)
            noise = ((1 - more) * noise + more * np.where(noise > 0, blind, 0)).astype(np.float32)
        odds = float(population.believed(np.float64(self.odds), np.float64(more), np.float64(self.rate)))
        return replace(self, odds=odds, lost=1 - (1 - self.lost) * (1 - more), noise=noise)

    def backed(self, backing: float) -> Opinion:
        """The opinion when the images bear out what the models say of masks this far, in [0, 1].

        Where they do not, no mask may be exact, nor what would be suggested: the models' doubts of each voxel say as
        much as the verdict on the mask. Whether an object is there is no matter of exactness.
        """
        if backing == self.backing or not (self.evidence.drawn and self.evidence.seen):
            return self
        doubt = np.where(self.noise > 0, 1 - self.look.given, 0)
        noise = self.noise + DOUBTS_COUNT * (1 - backing) * (doubt - self.noise)
        return replace(self, noise=noise.astype(np.float32), backing=backing)

    def within(self, box: tuple[slice, ...]) -> Opinion:
        """The opinion with a look that holds this box of the image as well."""
        look = self.look.within(box)
        noise = self.look.whole(self.noise)[look.box]
        return self if look is self.look else replace(self, look=look, noise=noise)

    @cached_property
    def confused(self) -> np.ndarray:
        """(K, K) expected voxels by given (row) and true (column) class."""
        look, classes = self.look, self.look.classes
        doubted = self.noise > 0
        drawn = look.label.ravel() if look.valid is None else look.label[look.valid]
        if look.valid is not None:
            doubted &= look.valid
        at = np.flatnonzero(doubted)
        noise, label = self.noise.ravel()[at], look.label.ravel()[at]
        others = look.probs.reshape(classes, -1)[:, at].astype(np.float64)
        others[label, np.arange(len(label))] = 0
        others *= noise / np.maximum(others.sum(axis=0), 1e-9)
        joint = np.diag(np.bincount(drawn, minlength=classes).astype(np.float64))
        for given in range(classes):
            mine = label == given
            joint[given] += others[:, mine].sum(axis=1)
            joint[given, given] -= noise[mine].sum()
        return joint

    def wrong_share(self, suggested: np.ndarray) -> float:
        """Expected wrong voxels per voxel of given or suggested (*B) foreground, in [0, 1]."""
        area = int(((self.look.label > 0) | (suggested > 0)).sum())
        return min(float(self.noise.sum()) / max(area, 1), 1.0)

    def class_wrong_share(self, index: int) -> float:
        """Expected wrong voxels of a class, false and missing ones, per given or missing voxel, in [0, 1]."""
        joint = self.confused
        wrong = float(joint[index].sum() + joint[:, index].sum() - 2 * joint[index, index])
        missing = float(joint[:, index].sum() - joint[index, index])
        given = int(np.count_nonzero(self.look.label == index))
        return min(wrong / max(given + missing, 1.0), 1.0)

    def dice(self, suggested: np.ndarray) -> np.ndarray:
        """(K - 1,) estimated Dice of each foreground class of the given mask against the truth; NaN where absent.

        For a flawed mask half of it is the Dice to the suggested mask (*B), which may have heard the images, and less
        where these do not bear out the models; a quarter each what the model expects and the Dice to the mask that it
        decides for. Where one of them says nothing, the others. As far as the model is lost: the Dice to a suggestion
        of the images, and without one half of what the model's mask says. What is missing to 1 counts by
        `held_against`. Where only one of mask and model has a class there is no outline to compare: it is how likely
        the mask is right.
        """
        label, classes, lost = self.look.label, self.look.classes, self.lost
        heard, model = mask_dice(label, suggested, classes), self.dice_by_model()
        decided = mask_dice(label, self.look.decided, classes)
        poor = 1 - POOR * (1 - np.where(np.isfinite(decided), decided, model))
        changed = bool((suggested != label).any())  # a lost model suggests nothing, so it was the images
        said = self.backing * (1 - lost) + (lost if changed else 0)
        weights = [1 - lost, 1 - lost, 2 * said, 0 if changed else 4 * lost]
        views = np.ma.masked_invalid([model, decided, heard, poor])
        found = np.ma.filled(np.ma.average(views, axis=0, weights=weights), np.nan)
        found = 1 - self.held_against * (1 - found)
        right = self._right()
        found = np.where(np.isfinite(found) & np.isfinite(right), right, found)
        found[~self._counted(suggested)] = np.nan
        return np.asarray(found)

    def _right(self) -> np.ndarray:
        """(K - 1,) how likely the mask is right in classes that only it or only the model has; NaN for others.

        In all classes where mask and model have nothing in common at all.
        """
        look, classes = self.look, self.look.classes
        if not (self.evidence.drawn and self.evidence.seen):
            return np.full(classes - 1, 1 - self.flawed)
        right = np.full(classes - 1, np.nan)
        for k in range(1, classes):
            drawn, seen = look.label == k, look.decided == k
            if drawn.any() and not seen.any():
                right[k - 1] = 1 - float(self.noise[drawn].mean())
            elif seen.any() and not drawn.any():
                chance = self.noise[seen] / np.maximum(1 - look.given[seen], LEAST)
                right[k - 1] = 1 - min(float(chance.max()), 1.0)
        return right

    def _counted(self, suggested: np.ndarray) -> np.ndarray:
        """(K - 1,) bool: classes that are drawn, suggested or perhaps missed; all where nothing is drawn.

        A model is never quite sure that a class is not there; that is no Dice of 0.
        """
        label, decided = self.look.label, self.look.decided
        if not label.any():
            return np.ones(self.look.classes - 1, bool)
        return np.array([
            (label == k).any() or (suggested == k).any() or self.noise[decided == k].max(initial=0) > GLIMPSED
            for k in range(1, self.look.classes)
        ])  # fmt: skip

    @property
    def held_against(self) -> float:
        """Share of what sets the mask apart from model and suggestion that is the mask's error, in [0, 1].

        All of it where the mask is flawed. Of a sound mask none, if the models agree with sound masks better than
        annotators with one another; if they do not, no mask here is exact, and its Dice is what they say.
        """
        inexact = float(np.clip((1 - self.usual_overlap) / (1 - AGREED), 0, 1)) ** 2
        flawed = self.flawed
        return (flawed + (1 - flawed) * inexact) * min(flawed / FORGIVEN, 1.0)

    def dice_by_model(self) -> np.ndarray:
        """(K - 1,) what the model alone expects of it; NaN where absent.

        Sound masks waver too: part of the ordinary disagreement with the model is put down to the mask. Where the
        models are so weak that they agree with few masks, what is usual with them is not held against the masks.
        """
        found = joint_dice(self.confused)
        agreement = overlaps(self.look) * max(AGREED / max(self.usual_overlap, 0.1), 1)
        return np.asarray(found - WAVER * np.maximum(found - agreement, 0))


def overlaps(look: Look) -> np.ndarray:
    """(K - 1,) soft Dice of each foreground class with its probabilities; 0 where nobody sees it."""
    found = np.zeros(look.classes - 1)
    for k in range(1, look.classes):
        drawn, likely = look.label == k, look.probs[k]
        found[k - 1] = 2 * float(likely[drawn].sum()) / max(float(drawn.sum() + likely.sum()), 1e-6)
    return found


def _overlap(look: Look) -> float:
    """Mean of `overlaps` over the drawn classes; NaN where nothing is drawn."""
    drawn = [k for k in range(1, look.classes) if (look.label == k).any()]
    return float(overlaps(look)[[k - 1 for k in drawn]].mean()) if drawn else float("nan")


def mask_dice(given: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """(K - 1,) Dice of each foreground class between two maps (*S) of class indices; NaN where neither has it."""
    found = np.full(classes - 1, np.nan)
    for k in range(1, classes):
        first, second = given == k, truth == k
        total = np.count_nonzero(first) + np.count_nonzero(second)
        if total:
            found[k - 1] = 2 * np.count_nonzero(first & second) / total
    return found


def joint_dice(joint: np.ndarray) -> np.ndarray:
    """Dice of each foreground class from counts by given and true class (K, K); NaN where neither has it."""
    given, true = joint.sum(axis=1)[1:], joint.sum(axis=0)[1:]
    total = given + true
    return np.where(total > 0.5, 2 * np.diag(joint)[1:] / np.maximum(total, 1e-9), np.nan)


def priority(flawed: float, quality: float, backing: float = 1.0) -> float:
    """What a look at a case is expected to find, in [0, 1], by P(flawed) and estimated Dice; cases are sorted by it.

    Where images do not bear out the models (`Opinion.backing`), no mask may be sound, and the Dice alone counts.
    """
    return (1 - backing * (1 - flawed)) * (1 - quality)


def mean_dice(dice: np.ndarray) -> float:
    """Mean over the classes that are there; 1 when there are none."""
    there = dice[np.isfinite(dice)]
    return float(there.mean()) if len(there) else 1.0


@dataclass(frozen=True)
class Auditor:
    """The fitted audit; `judge` gives its opinion of a case.

    Args:
        calibration, population, voxels: what was learnt.
        usual_overlap: of sound masks with their models, see `overlaps`.
        seen: figures of the cases that it was fitted to, by `Look.fingerprint`: they need not be gathered again.
    """

    calibration: Calibration
    population: Judge
    voxels: VoxelJudge
    usual_overlap: float = 1.0
    seen: Mapping[tuple[str, int, float], Evidence] = field(default_factory=dict, repr=False)

    def flawed_outlines(self) -> dict[str, float]:
        """P(flawed outlines) by the models alone of the cases that it was fitted to, where mask and model have any."""
        cases = {case: one for (case, *_), one in self.seen.items() if one.drawn and one.seen}
        if not cases:
            return {}
        odds = self.population.outline_odds(list(cases.values()))
        return dict(zip(cases, population.sigmoid(odds).tolist(), strict=True))

    def judge(self, look: Look) -> Opinion:
        """The opinion of a case with uncalibrated probabilities."""
        known = self.seen.get(look.fingerprint)
        look = self.calibration(look)
        evidence = known or gather(look.thinned())
        judge = self.population
        outlines, doubt = judge.in_outlines([evidence]), float(judge.usual.excess([evidence])[0])
        verdict = float(judge.with_objects(outlines, [evidence])[0])
        noise = self._noise(look, evidence, float(outlines[0]))
        beforehand = float(judge.beforehand([evidence])[0])
        sure = Opinion(look, evidence, verdict, 0.0, noise, self.usual_overlap, doubt, beforehand)
        return sure.lost_by(float(population.lost_at(np.float64(doubt))))

    def _noise(self, look: Look, evidence: Evidence, odds: float) -> np.ndarray:
        """`Opinion.noise` if the model is not lost, by `Judge.in_outlines`."""
        noise = self.voxels.noise(look, odds)
        if not evidence.one_sided and not evidence.lone:
            return noise
        there = np.where(look.label > 0, 1, 1 - look.given) * (noise > 0)
        wrong = np.zeros(look.label.size)  # of an object all voxels are or none
        if evidence.one_sided:
            wrong[:] = population.sigmoid(np.float64(odds))
        else:
            for one, where in Objects.of(look).lone:
                wrong[where] = population.sigmoid(np.float64(self.population.presence.odds(one)))
        return np.maximum(noise, wrong.reshape(noise.shape) * there).astype(np.float32)


@dataclass(frozen=True)
class _Made:
    """Errors made on purpose: their figures, and the case of each."""

    evidence: list[Evidence]
    samples: list[VoxelSample]
    origin: np.ndarray
    kinds: list[str]

    @classmethod
    def of(cls, seen: Sequence[_Seen]) -> _Made:
        every = [(number, *wrong) for number, one in enumerate(seen) for wrong in one.wrong]
        origin = np.array([number for number, *_ in every], int)
        return cls([one[1] for one in every], [one[2] for one in every], origin, [one[3] for one in every])


def fit(
    looks: Looks,
    ids: Sequence[str],
    trusted: frozenset[str] = frozenset(),
    *,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
    over: Mapper = in_turn,
) -> Auditor:
    """Learn what is usual in a data set and what errors look like to its models.

    Args:
        looks: opens cases.
        ids: of all cases.
        trusted: cases known to be clean.
        seed: decides which cases are looked at where there are more than 400, and the errors made on purpose.
        progress: called after each case and pass.
        over: spreads the cases; other processes need `looks` that can be pickled.
    """
    chosen = _chosen(ids, trusted, seed)
    clean = np.array([case in trusted for case in chosen])
    numbered = list(enumerate(chosen))
    first = [_counted(one, progress) for one in over(partial(_look_first, looks, seed), numbered)]
    trust = population.first_trust([case for case, _ in first], clean)
    told = trust * ~population.blank([case for case, _ in first])
    set_right = calibration.fit([sample for _, sample in first], told)
    each = _injections(told)
    again = partial(_look_again, looks, set_right, each, seed)
    seen = [_counted(one, progress) for one in over(again, numbered)]
    made = _Made.of(seen)
    cases = [one.evidence for one in seen]
    judge = population.fit(cases, made.evidence, made.kinds, made.origin, trust, clean)
    usual = float(population.middle_and_spread(np.array([one.overlap for one in seen]), judge.trust)[0])
    known = {one.fingerprint: one.evidence for one in seen}
    return Auditor(
        set_right, judge, _fit_voxels(judge, cases, [one.sound for one in seen], made), usual, known
    )


def _counted(result: Result, progress: Callable[[], object]) -> Result:
    progress()
    return result


def _look_first(looks: Looks, seed: int, item: tuple[int, str]) -> tuple[Evidence, np.ndarray]:
    """The figures of a case with probabilities as they are, and a sample of these."""
    number, case = item
    look = next(looks([case])).thinned()
    return gather(look), calibration.sample(look, np.random.default_rng([seed, 11, number]))


@dataclass(frozen=True)
class _Seen:
    """A case with calibrated probabilities, and the errors made in it on purpose.

    Args:
        evidence, overlap: of the mask as given. fingerprint: of the look.
        sound: a sample of its voxels.
        wrong: figures, a sample of the voxels, and the kind of each error.
    """

    evidence: Evidence
    overlap: float
    fingerprint: tuple[str, int, float]
    sound: VoxelSample
    wrong: list[tuple[Evidence, VoxelSample, str]]


def _look_again(
    looks: Looks, set_right: Calibration, each: np.ndarray, seed: int, item: tuple[int, str]
) -> _Seen:
    number, case = item
    rng = np.random.default_rng([seed, 12, number])
    look = next(looks([case]))
    calibrated = set_right(look.thinned())
    evidence, sound = gather(calibrated), voxels.sample(calibrated, calibrated.label, rng)
    wrong = [_make(calibrated, rng) for _ in range(each[number])]
    made = [one for one in wrong if one is not None]
    return _Seen(evidence, _overlap(calibrated), look.fingerprint, sound, made)


def _chosen(ids: Sequence[str], trusted: frozenset[str], seed: int) -> list[str]:
    if len(ids) <= FIT_ON:
        return list(ids)
    rng = np.random.default_rng([seed, 10])
    order = sorted(rng.permutation(len(ids)).tolist(), key=lambda i: ids[i] not in trusted)
    return [ids[i] for i in sorted(order[:FIT_ON])]


def _injections(trust: np.ndarray) -> np.ndarray:
    """(N,) how many errors to make in each case: where the mask is believed."""
    wanted = trust > BELIEVABLE
    each = min(MOST_INJECTED, -(-INJECTED // max(int(wanted.sum()), 1)))
    return np.where(wanted, each, 0)


def _make(look: Look, rng: np.random.Generator) -> tuple[Evidence, VoxelSample, str] | None:
    """Figures, voxels and kind of one error in outlines; None where none came about."""
    for _ in range(TRIES):
        error = inject(look, rng)
        if error is None:
            return None
        wrong, kind = look.with_label(error[0]), error[1]
        objects = Objects.of(wrong)
        if objects.share(wrong.label != look.label) > MOST_LONE:
            continue
        named = kind if kind in OUTLINES else "mixed" if kind == "mixed" else "object"
        return gather(wrong, objects), voxels.sample(wrong, look.label, rng), named
    return None


def _fit_voxels(
    judge: Judge, cases: Sequence[Evidence], sound: Sequence[VoxelSample], made: _Made
) -> VoxelJudge:
    right = (1 - judge.rate) * population.share(judge.trust * ~population.blank(cases))
    wrong = judge.rate * population.share(judge.trust[made.origin])
    odds = np.concatenate([judge.in_outlines(cases), judge.in_outlines(made.evidence)])
    return voxels.fit([*sound, *made.samples], odds, np.concatenate([right, wrong]))
