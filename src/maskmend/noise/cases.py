"""Flaw a share of the cases: as drawn, or at the strength that leaves a wanted Dice."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskmend.errors import UsageError
from maskmend.noise.base import Annotation, LabelNoise
from maskmend.noise.calibrate import Calibration, Drawn, calibrate, checked_targets, require
from maskmend.noise.corrupt import chosen_classes, corrupt_annotation, effect, keep_share

Flawed = dict[str, tuple[np.ndarray, dict[str, Any]]]
"""Label (*S) and record by case."""


@dataclass(frozen=True)
class Recipe:
    """What fixes the noise of a data set.

    Args:
        noise: what each flawed case draws from.
        rate: share of the cases, in [0, 1].
        seed: any integer >= 0; with a case's id it fixes that case's flaw.
        target_dice: wanted mean Dice of the flawed cases, for all classes or by class (name or value).
        each: every single case shall have that Dice, not only their mean.
        keep: every class keeps at least this share of its volume, see `corrupt_annotation`.
        classes: values of the classes to change; None: all.
        layered: see `maskmend.noise.corrupt.apply`.
        ignore: a value that is no class.
    """

    noise: LabelNoise
    rate: float
    seed: int = 0
    target_dice: float | Mapping[Any, float] | None = None
    each: bool = False
    keep: float | None = None
    classes: Sequence[int] | None = None
    layered: bool = False
    ignore: int | None = None

    def settings(self) -> dict[str, Any]:
        """Ready for JSON."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "noise"}
        return {"noise": self.noise.describe(), **named}


def choose_cases(ids: Iterable[str], rate: float, seed: int) -> list[str]:
    """The round(rate * n) cases to flaw, sorted; independent of the order of `ids`.

    Raises:
        UsageError: the rate is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise UsageError(f"{rate:g} is no share of the cases in [0, 1]", "rate", "e.g. 0.3 for 30 %")
    names = sorted(ids)
    order = np.random.default_rng([seed, 0]).permutation(len(names))
    return sorted(names[i] for i in order[: round(rate * len(names))])


def case_rng(case: str, seed: int) -> np.random.Generator:
    """The generator of one case: its flaw does not depend on which other cases there are."""
    return np.random.default_rng([seed, 1, zlib.crc32(case.encode())])


def corrupt_cases(truths: Sequence[Annotation], recipe: Recipe) -> tuple[Flawed, dict[str, Any]]:
    """Flaw every case given.

    Args:
        truths: labels with their case ids.
        recipe: how; its rate is not looked at.

    Returns:
        Labels with records by case, and what calibration reached (empty without a target).

    Raises:
        UsageError: a mean Dice is off by more than 0.01.
    """
    if recipe.target_dice is None:
        return {truth.case: corrupt_case(truth, recipe) for truth in truths}, {}
    drawn = [_draw(truth, recipe) for truth in truths]
    found, facts = _calibrated(drawn, recipe)
    if not recipe.each:
        for one in found:
            require(one, drawn[0].truth.names)
    return {truth.case: _result(truth, one, recipe) for truth, one in zip(truths, drawn, strict=True)}, facts


def corrupt_case(truth: Annotation, recipe: Recipe) -> tuple[np.ndarray, dict[str, Any]]:
    """Flaw one case as drawn."""
    rng = case_rng(truth.case, recipe.seed)
    how: dict[str, Any] = {"keep": recipe.keep, "classes": recipe.classes, "ignore": recipe.ignore}
    return corrupt_annotation(truth, recipe.noise, rng, **how)


def _draw(truth: Annotation, recipe: Recipe) -> Drawn:
    subject = chosen_classes(truth, recipe.classes, recipe.ignore)
    choice = recipe.noise.choose(case_rng(truth.case, recipe.seed), subject)
    return Drawn(subject, choice, keep_share(recipe.noise, recipe.keep))


def _calibrated(drawn: Sequence[Drawn], recipe: Recipe) -> tuple[list[Calibration], dict[str, Any]]:
    """Calibrate all cases together, or each by itself."""
    holding = [one for one in drawn if one.truth.classes]
    if not holding or recipe.target_dice is None:
        return [], {}
    values = sorted({value for one in holding for value in one.truth.classes})
    targets = checked_targets(recipe.target_dice, holding[0].truth.names, values)
    groups = [[one] for one in holding] if recipe.each else [holding]
    found = [calibrate(group, recipe.noise, targets) for group in groups]
    means = {v: float(np.mean([f.reached[v] for f in found if v in f.reached])) for v in targets}
    missed = {
        one[0].truth.case: {v: result.reached[v] for v in result.missed()}
        for one, result in zip(groups, found, strict=True)
        if recipe.each and result.missed()
    }
    strength = {} if recipe.each else {"strength": found[0].levels}
    return found, {"target": targets, "reached": means, "missed": missed, **strength}


def _result(truth: Annotation, one: Drawn, recipe: Recipe) -> tuple[np.ndarray, dict[str, Any]]:
    others = (truth.label != 0) & (one.truth.label == 0)
    label = np.where(others, truth.label, one.label())
    record = {**one.choice, "strength": dict(one.levels)}
    return label, record | effect(truth.label, label, ignore=recipe.ignore)
