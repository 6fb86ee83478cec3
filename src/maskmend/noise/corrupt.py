"""Give a mask the flaws of a human annotator: choose what to do, do it, and record what it did.

Choosing is apart from applying: `choose` draws the parameters, `apply` is a pure function of them, so a
recorded flaw can be replayed on another machine or on a mask of another resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from maskmend.errors import UsageError, unknown
from maskmend.noise import morphology
from maskmend.noise.affine import move

KINDS: dict[str, tuple[str, ...]] = {
    "dilate": ("dilate",),
    "erode": ("erode",),
    "move": ("move",),
    "mixed": ("dilate", "erode", "move"),
}
"""What a kind draws its transform from, with equal chances. One transform alone is *biased* noise."""

_STEPS = 12  # attempts to keep every structure, each with 4/5 of the strength before


def choose(
    kind: str,
    rng: np.random.Generator,
    ndim: int,
    *,
    radius_mm: Sequence[float] = (2.0, 5.0),
    degrees: float = 20.0,
) -> dict[str, Any]:
    """Draw one transform and its parameters.

    Args:
        kind: a key of `KINDS`.
        rng: the only source of chance.
        ndim: 2 or 3.
        radius_mm: smallest and largest radius; a move shifts by as much, in a random direction.
        degrees: a move turns by up to this much to either side (in 3-D about axis 0, within the slices).

    Returns:
        {"transform": "dilate" | "erode", "radius_mm": r} or {"transform": "move", "shift_mm": [...],
        "degrees": a}: what `apply` takes, ready for JSON.
    """
    if kind not in KINDS:
        raise unknown("kind of noise", kind, KINDS)
    low, high = radius_mm
    if not 0 <= low <= high:
        raise UsageError(f"{list(radius_mm)} must be two numbers, 0 <= smallest <= largest", "radius_mm")
    transform = KINDS[kind][int(rng.integers(len(KINDS[kind])))]
    radius = float(rng.uniform(low, high))
    if transform != "move":
        return {"transform": transform, "radius_mm": radius}
    direction = rng.standard_normal(ndim)
    shift = radius * direction / np.linalg.norm(direction)
    return {"transform": "move", "shift_mm": shift.tolist(), "degrees": float(rng.uniform(-degrees, degrees))}


def apply(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    choice: Mapping[str, Any],
    *,
    strength: float = 1.0,
    classes: Iterable[int] | None = None,
    layered: bool = False,
    ignore: int | None = None,
) -> np.ndarray:
    """Do what `choose` drew.

    Args:
        label: (*S) integers, 0 is background.
        spacing_mm: voxel size in the order of the axes.
        choice: see `choose`.
        strength: multiplies every length and angle, in [0, 1].
        classes: the classes to change; None: all. The others stay where they are.
        layered: False: classes lie side by side, only their border with the background moves. True: a higher
            class lies on top of the lower ones (a tumour in a liver) and its whole border moves.
        ignore: a value that is no class ("not annotated"); it stays where it is.

    Returns:
        A new array (*S) of the same type.
    """
    present = {int(value) for value in np.unique(label)} - {0, ignore}
    chosen = present if classes is None else present & set(classes)
    subject = np.where(np.isin(label, list(chosen)), label, np.zeros((), label.dtype))
    changed = _transform(subject, spacing_mm, choice, strength, layered)
    untouched = (label != 0) & (subject == 0)
    return np.where(untouched, label, changed)


def _transform(
    label: np.ndarray, spacing_mm: Sequence[float], choice: Mapping[str, Any], strength: float, layered: bool
) -> np.ndarray:
    if choice["transform"] == "move":
        shift = [strength * length for length in choice["shift_mm"]]
        return move(label, spacing_mm, shift_mm=shift, degrees=strength * choice["degrees"])
    steps = {
        ("dilate", False): morphology.grow_all,
        ("dilate", True): morphology.grow_layers,
        ("erode", False): morphology.shrink_all,
        ("erode", True): morphology.shrink_layers,
    }
    return steps[choice["transform"], layered](label, spacing_mm, strength * choice["radius_mm"])


def corrupt_label(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    kind: str,
    rng: np.random.Generator,
    *,
    keep: float = 0.1,
    classes: Iterable[int] | None = None,
    layered: bool = False,
    ignore: int | None = None,
    **params: Any,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Give one mask one flaw.

    Args:
        label: (*S) integers, 0 is background.
        spacing_mm: voxel size in the order of the axes.
        kind: "dilate", "erode", "move" or "mixed".
        rng: the only source of chance.
        keep: every class keeps at least this share of its volume; where the drawn strength would leave less,
            a weaker one is used and recorded. 0: structures may vanish.
        classes, layered, ignore: see `apply`.
        **params: see `choose`.

    Returns:
        The flawed mask (*S) of the same type, and the record: what `choose` drew, "strength", and what it
        did: "dice" by class, "changed" (voxels) and "changed_share" (of the foreground).
    """
    choice = choose(kind, rng, label.ndim, **params)
    picked = None if classes is None else list(classes)
    strength, flawed = 1.0, label
    for step in range(_STEPS + 1):
        strength = 0.8**step if step < _STEPS else 0.0
        flawed = apply(
            label, spacing_mm, choice, strength=strength, classes=picked, layered=layered, ignore=ignore
        )
        if keep <= 0 or _survives(label, flawed, keep, ignore):
            break
    return flawed, {**choice, "strength": strength, **effect(label, flawed, ignore=ignore)}


def _survives(label: np.ndarray, flawed: np.ndarray, keep: float, ignore: int | None) -> bool:
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
