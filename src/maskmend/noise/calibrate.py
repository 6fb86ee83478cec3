"""Find the strength at which a flaw leaves a wanted Dice: the same radius is another severity for each organ.

Dice falls as strength grows, so bisection finds the strength. One strength for each structure over all
cases keeps the cases as different as they were drawn; one for each case makes all equally bad.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskmend.errors import UsageError
from maskmend.noise.base import KINDS, Annotation, Choice, Combined, LabelNoise, flaw
from maskmend.noise.corrupt import Level, Strengths, at_level, joined

TOLERANCE = 0.01
_CLOSE = 0.25  # bisection ends at this share of the tolerance
_SWEEPS = 5  # over the structures, for one's strength moves the others' Dice
_HALVINGS = 14
_WEAKER = 40  # attempts to keep a structure, each with 4/5 of the strength before; then it is left alone


@dataclass
class Drawn:
    """A case with what was chosen for it, ready to be flawed at any strength.

    Args:
        truth: the label with nothing but the classes that may change.
        choice: what was drawn.
        keep: share of each class that must stay; a case that would lose more gets a weaker flaw.
        flawed: by class, the whole label at that class's strength; filled by `set_level`.
        levels: by class, the strength in use.
    """

    truth: Annotation
    choice: Choice
    keep: float
    flawed: dict[int, np.ndarray] = field(default_factory=dict)
    levels: dict[int, Level] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._at = Strengths(self.truth, self.choice)

    def set_level(self, value: int, level: Level) -> None:
        """Flaw one class at a strength, weakened until enough of the class is left."""
        for _ in range(_WEAKER):
            label = self._at(level)
            least = max(1.0, self.keep * (self.truth.label == value).sum())
            if self.keep <= 0 or (label == value).sum() >= least:
                break
            level = 0.8 * (level if isinstance(level, int | float) else level[0])
        else:
            level, label = 0.0, self.truth.label
        self.flawed[value], self.levels[value] = label, level

    def label(self) -> np.ndarray:
        """The flawed label with every class at its strength."""
        return joined(self.truth, self.flawed)

    def dice(self, value: int) -> float:
        """Of one class."""
        before, after = self.truth.label == value, self.label() == value
        return float(2 * (before & after).sum() / max(before.sum() + after.sum(), 1))


@dataclass(frozen=True)
class Calibration:
    """What calibration found, by class.

    Args:
        levels: strength, for `maskmend.noise.corrupt.apply`.
        targets: wanted mean Dice.
        reached: mean Dice of the flawed cases.
        least: smallest mean Dice at any strength that was tried.
        keep: share of each class that had to stay.
    """

    levels: dict[int, Level]
    targets: dict[int, float]
    reached: dict[int, float]
    least: dict[int, float] = field(default_factory=dict)
    keep: float = 0.0

    def missed(self, tolerance: float = TOLERANCE) -> list[int]:
        """The classes whose Dice is off by more."""
        return [v for v, target in self.targets.items() if abs(self.reached[v] - target) > tolerance]


def calibrate(cases: Sequence[Drawn], noise: LabelNoise, targets: Mapping[int, float]) -> Calibration:
    """Find one strength for each class so that the mean Dice over the cases that hold it is the wanted one.

    Args:
        cases: their labels are flawed in place: afterwards `label()` gives the result.
        noise: what the choices were drawn from.
        targets: wanted Dice in (0, 1] by class; classes without one keep strength 1.

    Returns:
        Strengths and what they reached; see `Calibration.missed`. No error is raised here.
    """
    levels: dict[int, Level] = {}
    least: dict[int, float] = {}
    holders = {v: [c for c in cases if v in c.truth.classes] for v in targets}
    for case in cases:
        for value in case.truth.classes:
            case.set_level(value, 1.0)
    for _ in range(_SWEEPS):
        for value in (v for v, held in holders.items() if held):
            measured = _measure(holders[value], value)
            found = bisect(measured, targets[value], _strongest(cases, noise), noise.smooth)
            levels[value], least[value] = found.level, found.least
            measured(found.level)
        reached = {v: float(np.mean([c.dice(v) for c in held])) for v, held in holders.items() if held}
        result = Calibration(levels, {v: targets[v] for v in reached}, reached, least, cases[0].keep)
        if not result.missed() or len(reached) == 1:
            break
    return result


def _measure(cases: Sequence[Drawn], value: int) -> Callable[[Level], float]:
    def mean_dice(level: Level) -> float:
        for case in cases:
            case.set_level(value, level)
        return float(np.mean([case.dice(value) for case in cases]))

    return mean_dice


def _strongest(cases: Sequence[Drawn], noise: LabelNoise) -> float:
    return max([KINDS[name].max_strength for case in cases for name in _transforms(case.choice)], default=1.0)


def _transforms(choice: Any) -> list[str]:
    """All kinds within a choice: strength is useful as far as the most patient of them goes."""
    if isinstance(choice, Mapping):
        own = [choice["transform"]] if "transform" in choice else []
        return own + [name for inner in choice.values() for name in _transforms(inner)]
    return [n for inner in choice for n in _transforms(inner)] if isinstance(choice, list) else []


def bisect(
    measured: Callable[[Level], float], target: float, strongest: float, smooth: bool = True
) -> Search:
    """The strength at which a falling figure is `target`.

    Args:
        measured: the figure at a strength.
        target: what it shall be.
        strongest: the largest strength that is tried.
        smooth: whether part of the last step may be taken, see `maskmend.noise.corrupt.at_level`.

    Returns:
        What was found; its `level` is the nearest one where the target cannot be reached.
    """
    low, high = 0.0, min(1.0, strongest)
    best = Search(measured, target)
    if best.off(low) <= 0:  # others' flaws alone do as much
        return best
    while best.off(high) > 0 and high < strongest:
        low, high = high, min(2 * high, strongest)
    if best.last > _CLOSE * TOLERANCE:
        return best
    for _ in range(_HALVINGS):
        if best.close:
            return best
        middle = (low + high) / 2
        low, high = (middle, high) if best.off(middle) > 0 else (low, middle)
    if smooth and not best.close:
        _search_between(best, low, high)
    return best


def _search_between(best: Search, low: float, high: float) -> None:
    first, last = 0.0, 1.0
    for _ in range(_HALVINGS):
        share = (first + last) / 2
        first, last = (share, last) if best.off((low, high, share)) > 0 else (first, share)
        if best.close:
            break


class Search:
    """Remembers the level whose figure came nearest.

    Args:
        measured: the figure at a level.
        target: what it shall be.

    `level` is the best one so far, `nearest` how far its figure is from the target, `least` the smallest figure.
    """

    def __init__(self, measured: Callable[[Level], float], target: float) -> None:
        self.measured, self.target = measured, target
        self.level: Level = 0.0
        self.nearest = self.last = self.least = float("inf")

    @property
    def close(self) -> bool:
        """Whether that is near enough."""
        return self.nearest <= _CLOSE * TOLERANCE

    def off(self, level: Level) -> float:
        """How far the figure is above the target."""
        figure = self.measured(level)
        self.last, self.least = figure - self.target, min(self.least, figure)
        if abs(self.last) < self.nearest:
            self.nearest, self.level = abs(self.last), level
        return self.last


def checked_targets(
    given: float | Mapping[Any, float], names: Mapping[str, int], values: Sequence[int]
) -> dict[int, float]:
    """Wanted Dice by class value, from one number for all or numbers by class name.

    Raises:
        UsageError: outside (0, 1], or a class that is not there.
    """
    wanted = dict.fromkeys(values, float(given)) if isinstance(given, int | float) else {}
    for key, target in given.items() if isinstance(given, Mapping) else ():
        value = names.get(str(key), int(key) if str(key).isdigit() else -1)
        if value not in values:
            known = ", ".join(name for name, v in names.items() if v in values)
            known = known or ", ".join(map(str, values))
            raise UsageError(f"no flawed case holds a class {key!r}", "target Dice", f"classes: {known}")
        wanted[value] = float(target)
    for target in wanted.values():
        if not 0 < target <= 1:
            raise UsageError(f"{target:g} is not in (0, 1]", "target Dice", "e.g. 0.8")
    return wanted


def require(found: Calibration, names: Mapping[str, int]) -> None:
    """Stop where a target was missed, and say why.

    Raises:
        UsageError: with the nearest Dice for each class that missed it.
    """
    called, missed = {value: name for name, value in names.items()}, found.missed()
    if not missed:
        return
    facts = [
        f"{called.get(v, f'class {v}')}: {found.targets[v]:g} wanted, {found.reached[v]:.3f} reached"
        for v in missed
    ]
    remedy = f"{_why(found, missed[0])}: choose another target, another noise, or targets by class"
    raise UsageError(f"out of reach ({'; '.join(facts)})", "target Dice", remedy)


def _why(found: Calibration, value: int) -> str:
    """Why a class missed its target."""
    if found.least[value] > found.targets[value]:
        leaves = f" that leaves {found.keep:.0%} of each structure" if found.keep else ""
        return f"this noise cannot do more damage than that, at any strength{leaves}"
    if found.levels[value] == 0 and found.reached[value] < found.targets[value]:
        return "the flaws of the other classes alone do more damage than that"
    return "this noise acts in whole pieces, too large for a Dice nearer to that"


@dataclass(frozen=True)
class ToChange(Combined):
    """A flaw whose strength is set for each case so that a share of the foreground's voxels changes.

    Args:
        inner: the flaw.
        share: changed voxels divided by foreground voxels, > 0.

    Example:
        >>> from maskmend.noise.boundary import Dilate
        >>> label = np.zeros((60, 60), np.uint8); label[20:40, 20:40] = 1
        >>> truth = Annotation(label, (1.0, 1.0))
        >>> choice = ToChange(Dilate((1, 3)), share=0.5).choose(np.random.default_rng(0), truth)
        >>> round(float((flaw(truth, choice) != label).sum() / label.sum()), 2)
        0.5

    Source: Li et al., superpixel-guided learning, MICCAI 2021 (changed area 0.5 or 0.7 of the foreground).
    """

    name = "to_change"
    inner: LabelNoise
    share: float = 0.5

    @property
    def parts(self) -> Sequence[LabelNoise]:
        """The flaw within."""
        return (self.inner,)

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Choose, then bisect the strength."""
        if not self.share > 0:
            raise UsageError(f"{self.share} must be above 0", "share")
        choice = self.inner.choose(rng, annotation)
        foreground, at = max(int((annotation.label > 0).sum()), 1), Strengths(annotation, choice)

        def unchanged(level: Level) -> float:
            return 1 - float((at(level) != annotation.label).sum()) / foreground

        strongest = max(KINDS[name].max_strength for name in _transforms(choice))
        level = bisect(unchanged, 1 - self.share, strongest, self.inner.smooth).level
        return {"transform": self.name, "choice": choice, "level": level}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Strength scales the one that was found."""
        level = choice["level"]
        if isinstance(level, int | float):
            return flaw(annotation, choice["choice"], strength * level)
        low, high, share = level
        scaled: Level = (strength * low, strength * high, share)
        return at_level(annotation, choice["choice"], scaled)
