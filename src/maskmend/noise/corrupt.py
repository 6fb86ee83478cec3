"""Give a mask the flaws of an annotator: choose what to do, do it, and record what it did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from maskmend.noise.base import Annotation, LabelNoise, flaw

_STEPS = 12  # attempts to keep every structure, each with 4/5 of the strength before

Level = float | Sequence[float]
"""A strength; or (low, high, share): the weaker flaw, with this share of what the stronger one adds."""


def apply(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    choice: Mapping[str, Any],
    *,
    strength: Level | Mapping[Any, Level] = 1.0,
    classes: Iterable[int] | None = None,
    layered: bool = False,
    ignore: int | None = None,
    image: np.ndarray | None = None,
) -> np.ndarray:
    """Do what was chosen; with a record's choice and strength, replay it.

    Args:
        label: (*S) integers, 0 is background.
        spacing_mm: voxel size in the order of the axes.
        choice: what `LabelNoise.choose` drew.
        strength: multiplies every length, angle and probability; one for all classes or one by class.
        classes: the classes to change; None: all. The others stay where they are.
        layered: False: classes lie side by side, only their border with the background moves. True: a higher
            class lies on top of the lower ones (a tumour in a liver) and its whole border moves.
        ignore: a value that is no class ("not annotated"); it stays where it is.
        image: (C, *S), for flaws that follow the image.

    Returns:
        A new array (*S) of the same type.
    """
    truth = Annotation(label, tuple(spacing_mm), image, layered)
    return apply_to(truth, choice, strength, classes=classes, ignore=ignore)


def apply_to(
    truth: Annotation,
    choice: Mapping[str, Any],
    strength: Level | Mapping[Any, Level] = 1.0,
    *,
    classes: Iterable[int] | None = None,
    ignore: int | None = None,
) -> np.ndarray:
    """`apply` for a label that comes with all that is known about it."""
    subject = chosen_classes(truth, classes, ignore)
    if isinstance(strength, Mapping):
        levels = {int(value): level for value, level in strength.items()}
        flawed = {v: at_level(subject, choice, levels.get(v, 1.0)) for v in subject.classes}
        changed = joined(subject, flawed)
    else:
        changed = at_level(subject, choice, strength)
    return np.where((truth.label != 0) & (subject.label == 0), truth.label, changed)


def chosen_classes(truth: Annotation, classes: Iterable[int] | None, ignore: int | None) -> Annotation:
    """The annotation with nothing but the classes that may change."""
    label = truth.label
    chosen = set(truth.classes) - {ignore}
    if classes is not None:
        chosen &= {int(value) for value in classes}
    kept = np.where(np.isin(label, sorted(chosen)), label, np.zeros((), label.dtype))
    return Annotation(kept, truth.spacing_mm, truth.image, truth.layered, truth.names, truth.case)


def at_level(truth: Annotation, choice: Mapping[str, Any], level: Level) -> np.ndarray:
    """The flaw at a strength, or between two: see `between`."""
    return Strengths(truth, choice)(level)


class Strengths:
    """A flaw at any strength; the last two are remembered, for calibration ends between two and looks again and again.

    Args:
        truth: the label.
        choice: what was drawn for it.
    """

    def __init__(self, truth: Annotation, choice: Mapping[str, Any]) -> None:
        self.truth, self.choice = truth, choice
        self._recent: dict[float, np.ndarray] = {}

    def __call__(self, level: Level) -> np.ndarray:
        """The flawed label (*S), an array of the caller's own."""
        if isinstance(level, int | float):
            return self._at(float(level)).copy()
        low, high, share = level
        return between(self._at(low), self._at(high), share)

    def _at(self, strength: float) -> np.ndarray:
        label = self._recent.pop(strength, None)
        label = flaw(self.truth, self.choice, strength) if label is None else label
        self._recent = {**dict(list(self._recent.items())[-1:]), strength: label}
        return label


def between(weaker: np.ndarray, stronger: np.ndarray, share: float) -> np.ndarray:
    """The weaker of two flawed labels (*S) with a share of what the stronger one changes in addition.

    Voxels are whole: a millimetre more may add a whole ring of them. Between two strengths that differ by
    such a ring lies a part of it, in patches along the outline.
    """
    result, places = weaker.copy(), np.argwhere(weaker != stronger)
    if len(places):
        first, last = places.min(0), places.max(0)
        rough = np.random.default_rng(0).standard_normal(last - first + 1)
        order = np.argsort(ndimage.gaussian_filter(rough, 2.0)[tuple((places - first).T)], kind="stable")
        taken = tuple(places[order[: round(share * len(places))]].T)
        result[taken] = stronger[taken]
    return result


def joined(truth: Annotation, flawed: Mapping[int, np.ndarray]) -> np.ndarray:
    """One label from one for each class, each flawed at that class's strength.

    Layers are painted from the lowest. Side by side, a voxel that several classes claim goes to the one that
    it truly is, else to the highest.
    """
    result = np.zeros_like(truth.label)
    for value in sorted(flawed):
        claim = flawed[value] >= value if truth.layered else flawed[value] == value
        result[claim] = value
    for value in () if truth.layered else flawed:
        result[(truth.label == value) & (flawed[value] == value)] = value
    return result


def corrupt_label(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    noise: LabelNoise,
    rng: np.random.Generator,
    *,
    image: np.ndarray | None = None,
    names: Mapping[str, int] | None = None,
    layered: bool = False,
    **how: Any,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Give one mask one flaw.

    Args:
        label: (*S) integers, 0 is background.
        spacing_mm: voxel size in the order of the axes.
        noise: what to draw from.
        rng: the only source of chance.
        image: (C, *S), for flaws that follow the image.
        names: class name to value, for flaws that name classes.
        layered: see `apply`.
        **how: keep, classes, ignore: see `corrupt_annotation`.

    Returns:
        The flawed mask (*S) of the same type, and the record: what was drawn, "strength", and what it did:
        "dice" by class, "changed" (voxels) and "changed_share" (of the foreground).
    """
    truth = Annotation(label, tuple(spacing_mm), image, layered, names or {})
    return corrupt_annotation(truth, noise, rng, **how)


def corrupt_annotation(
    truth: Annotation,
    noise: LabelNoise,
    rng: np.random.Generator,
    *,
    keep: float | None = None,
    classes: Iterable[int] | None = None,
    ignore: int | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """`corrupt_label` for a label that comes with all that is known about it.

    Args:
        truth: the label.
        noise: what to draw from.
        rng: the only source of chance.
        keep: every class keeps at least this share of its volume; where the drawn strength would leave less,
            a weaker one is used and recorded. 0: structures may vanish. None: 0.1, or 0 for flaws that erase.
        classes, ignore: see `apply`.
    """
    picked = None if classes is None else list(classes)
    choice = noise.choose(rng, chosen_classes(truth, picked, ignore))
    share = keep_share(noise, keep)
    strength, flawed = 1.0, truth.label
    for step in range(_STEPS + 1):
        strength = 0.8**step if step < _STEPS else 0.0
        flawed = apply_to(truth, choice, strength, classes=picked, ignore=ignore)
        if share <= 0 or survives(truth.label, flawed, share, ignore):
            break
    return flawed, {**choice, "strength": strength, **effect(truth.label, flawed, ignore=ignore)}


def keep_share(noise: LabelNoise, keep: float | None) -> float:
    """The share of each class that must stay, where nobody said it."""
    return (0.0 if noise.may_erase else 0.1) if keep is None else keep


def survives(label: np.ndarray, flawed: np.ndarray, keep: float, ignore: int | None) -> bool:
    """Whether every class keeps at least this share of its voxels, and one."""
    values, counts = np.unique(label, return_counts=True)
    return all(
        np.count_nonzero(flawed == value) >= max(1, math.ceil(keep * count))
        for value, count in zip(values, counts, strict=True)
        if value not in (0, ignore)
    )


def effect(label: np.ndarray, flawed: np.ndarray, *, ignore: int | None = None) -> dict[str, Any]:
    """How far two masks (*S) differ: Dice by class of the first, voxels changed, share of the foreground."""
    dice, foreground = {}, 0
    for value in (int(v) for v in np.unique(label) if v not in (0, ignore)):
        before, after = label == value, flawed == value
        foreground += int(before.sum())
        dice[value] = float(2 * (before & after).sum() / (before.sum() + after.sum()))
    changed = int((label != flawed).sum())
    return {"dice": dice, "changed": changed, "changed_share": changed / max(foreground, 1)}
