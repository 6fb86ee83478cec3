"""Errors made on purpose in the given masks, from which the audit learns what errors look like to these models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from maskmend.audit.look import Look
from maskmend.audit.record import Kind
from maskmend.audit.shape import ball_radius
from maskmend.noise import (
    Dilate,
    DropComponents,
    EdgeCircles,
    Elastic,
    Erode,
    InventComponents,
    LabelNoise,
    Move,
    SwapClasses,
)
from maskmend.noise.base import Annotation, flaw

LEAST_CHANGE = 0.02  # of the foreground; less is no error worth learning
_SEVERITY = (0.06, 0.6)  # of the foreground's radius
_TRIES = 4
MARGIN = 3
KINDS: dict[str, Kind] = {
    "dilate": "over-drawn", "erode": "under-drawn", "move": "shifted", "elastic": "mixed", "circles": "mixed",
    "drop": "missing object", "invent": "invented object", "swap": "swapped class",
}  # fmt: skip


def inject(look: Look, rng: np.random.Generator) -> tuple[np.ndarray, Kind] | None:
    """One random error in a mask: the label (*B) in place of the given one, and its kind; None where none came about.

    Outlines too wide, too tight, moved, bent, bitten, wrong on a part only; parts left out, made up, or swapped.
    How far is drawn relative to the size of what is drawn, evenly on a logarithmic scale, so that subtle errors are as
    common as gross ones.
    """
    drawn = int((look.label > 0).sum())
    if not drawn:
        return None
    radius_mm = ball_radius(drawn * float(np.prod(look.spacing_mm)), look.label.ndim)
    for _ in range(_TRIES):
        changed, kind = _one(look, rng, radius_mm)
        if (changed != look.label).sum() > LEAST_CHANGE * drawn:
            return changed, kind
    return None


def invented(look: Look, radius_mm: float, rng: np.random.Generator) -> Look:
    """A look in which nothing is drawn with a ball drawn somewhere in the image, of any class."""
    shape, spacing = np.array(look.shape), np.array(look.spacing_mm)
    centre = np.floor(rng.uniform(size=len(shape)) * shape).astype(int)
    far = np.ceil(radius_mm / spacing).astype(int) + MARGIN
    low, high = np.maximum(centre - far, 0), np.minimum(centre + far + 1, shape)
    wide = look.within(tuple(slice(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True)))
    places = np.ogrid[wide.box]
    squares = sum((step * (at - c)) ** 2 for step, at, c in zip(spacing, places, centre, strict=True))
    label = np.where(squares <= radius_mm**2, rng.integers(1, look.classes), 0)
    return wide.with_label(label if wide.valid is None else np.where(wide.valid, label, 0))


def _one(look: Look, rng: np.random.Generator, radius_mm: float) -> tuple[np.ndarray, Kind]:
    severity = float(np.exp(rng.uniform(*np.log(_SEVERITY))))
    far = max(severity * radius_mm, 0.7 * min(look.spacing_mm))
    near = (0.6 * far, 0.6 * far)
    makers: dict[str, LabelNoise] = {
        "dilate": Dilate(near),
        "erode": Erode(near),
        "move": Move((far, far), degrees=40 * severity),
        "elastic": Elastic((far, far)),
        "circles": EdgeCircles((far, far), every_mm=1.5 * radius_mm),
        "drop": DropComponents(0.5),
        "invent": InventComponents((1, 1), (far, far), gap_mm=1.5 * far),
    }
    if look.classes > 2:
        makers["swap"] = SwapClasses(0.6)
    name = str(rng.choice([*makers, "part", "part"]))
    partly, name = name == "part", str(rng.choice(["dilate", "erode"])) if name == "part" else name
    label = look.label.astype(np.int32)
    annotation = Annotation(np.pad(label, MARGIN), look.spacing_mm)
    inner = (slice(MARGIN, -MARGIN),) * label.ndim
    changed = flaw(annotation, makers[name].choose(rng, annotation))[inner]
    if partly:
        wide = [max(0.5 * radius_mm / step, 1.5) for step in look.spacing_mm]
        changed = np.where(_patches(label.shape, wide, rng), changed, label)
    if look.valid is not None:
        changed = np.where(look.valid, changed, label)
    return changed.astype(np.uint8), KINDS[name]


def _patches(shape: Sequence[int], wide: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """(*S) bool, about half of it: where noise is above zero that was smoothed with deviations `wide` in voxels.

    It is smoothed on knots half a deviation apart, between which it is as good as linear.
    """
    steps = [max(1, int(one / 2)) for one in wide]
    knots = [-(-n // step) + 1 for n, step in zip(shape, steps, strict=True)]
    field = rng.standard_normal(knots)
    field = ndimage.gaussian_filter(field, [one / step for one, step in zip(wide, steps, strict=True)])
    for axis, (size, step) in enumerate(zip(shape, steps, strict=True)):
        before, part = np.divmod(np.arange(size), step)
        share = np.expand_dims(part / step, [a for a in range(len(shape)) if a != axis])
        field = (1 - share) * np.take(field, before, axis) + share * np.take(field, before + 1, axis)
    return np.asarray(field > 0)
