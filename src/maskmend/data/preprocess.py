"""From what a file holds to what a network sees, and exactly back: crop, normalise, resample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from maskmend.data.case import Geometry
from maskmend.data.fingerprint import Fingerprint, fingerprint, finite, nonzero_box
from maskmend.data.formats import MAX_VOXELS
from maskmend.data.plan import ChannelPlan, Plan, make_plan, prepared_shape
from maskmend.errors import DataError

__all__ = [
    "IGNORED",
    "Fingerprint",
    "Inverse",
    "Plan",
    "Prepared",
    "classes_of",
    "fingerprint",
    "make_plan",
    "normalise",
    "prepare",
    "resample",
    "resample_label",
]

IGNORED = 255
"""Class index that stands for "not annotated" while a label is being prepared."""


@dataclass(frozen=True)
class Inverse:
    """The way back from a prepared array to the input's grid.

    Args:
        shape: spatial shape of the input.
        box: (start, stop) per axis of the part that was kept.
        prepared: spatial shape after resampling that part.
    """

    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    prepared: tuple[int, ...]

    @property
    def _slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in self.box)

    @property
    def _inner(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.box)

    def restore(self, array: Any) -> np.ndarray:
        """Probabilities (K, *P) linearly interpolated on the input's grid, (K, *S) float32.

        What was cropped away is background with probability 1.
        """
        probs = resample(np.asarray(array, dtype=np.float32), self._inner)
        if self._inner == self.shape:
            return probs
        whole = np.zeros((len(probs), *self.shape), np.float32)
        whole[0] = 1
        for target, source in zip(whole, probs, strict=True):
            target[self._slices] = source
        return whole

    def restore_label(self, array: Any) -> np.ndarray:
        """Class indices (*P) on the input's grid, (*S) of the same integer type; 0 where it was cropped."""
        label = resample_label(np.asarray(array), self._inner)
        if self._inner == self.shape:
            return label
        whole = np.zeros(self.shape, label.dtype)
        whole[self._slices] = label
        return whole


@dataclass(frozen=True)
class Prepared:
    """One case as arrays on the plan's grid.

    Args:
        image: (C, *P) float32, normalised.
        label: (*P) uint8 class indices, 0 where not valid; None for a case without label.
        valid: (*P) bool, False where the label says "ignore"; None when all of the label counts, or
            when there is no label.
        inverse: the way back.
        raters: (n, *P) uint8, the masks of the raters who drew this case, `IGNORED` where one left a voxel out;
            None unless several raters are learnt from.
    """

    image: np.ndarray
    label: np.ndarray | None
    valid: np.ndarray | None
    inverse: Inverse
    raters: np.ndarray | None = None


def prepare(
    image: np.ndarray,
    label: np.ndarray | None,
    geometry: Geometry,
    plan: Plan,
    *,
    ignore_mask: np.ndarray | None = None,
    raters: Sequence[np.ndarray] = (),
    where: object = None,
) -> Prepared:
    """Bring one case to the plan's grid and intensities.

    Args:
        image: (C, *S), any number type; NaN and infinities become the channel's background.
        label: (*S) file values, or None.
        geometry: of the image; its spacing counts unless the plan overrides it.
        plan: what to do.
        ignore_mask: (*S), non-zero where the label must not be used.
        raters: further labels (*S) of the same case.
        where: case or file, for error messages.

    Raises:
        DataError: channels, dimension or shapes do not fit, the label holds an unknown value, or a voxel size that
            cannot be right would make the resampled image absurdly large.
    """
    _check_shapes(image, label, ignore_mask, raters, plan, where)
    clean = np.stack([finite(channel) for channel in np.asarray(image, dtype=np.float32)])
    box = nonzero_box(clean) if plan.crop else tuple((0, n) for n in clean.shape[1:])
    kept = tuple(slice(start, stop) for start, stop in box)
    everywhere = (slice(None), *kept)
    spacing_mm = plan.input_spacing_mm or geometry.spacing_mm
    inner = tuple(stop - start for start, stop in box)
    grid = plan.shape or prepared_shape(inner, spacing_mm, plan.spacing_mm, plan.spacing_tolerance)
    _check_grid(grid, clean, spacing_mm, where)
    pixels = normalise(clean[everywhere], plan.channels, nonzero_only=plan.crop)
    inverse = Inverse(tuple(clean.shape[1:]), box, grid)
    pixels = np.ascontiguousarray(resample(pixels, grid))

    def prepared(mask: np.ndarray) -> np.ndarray:
        classes = classes_of(mask, plan, where=where)
        if ignore_mask is not None:
            classes[np.asarray(ignore_mask) != 0] = IGNORED
        return np.ascontiguousarray(resample_label(classes[kept], grid))

    stack = np.stack([prepared(mask) for mask in raters]) if raters else None
    if label is None:
        return Prepared(pixels, None, None, inverse, stack)
    return Prepared(pixels, *label_and_valid(prepared(label)), inverse, stack)


def label_and_valid(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Class indices with 0 in place of `IGNORED`, and where they count (None: everywhere)."""
    valid = classes != IGNORED
    if valid.all():
        return classes, None
    classes[~valid] = 0
    return classes, valid


def classes_of(label: np.ndarray, plan: Plan, *, where: object = None) -> np.ndarray:
    """File values (*S) to class indices (*S) uint8, with `IGNORED` where the label is not annotated.

    Raises:
        DataError: a value is neither a class nor the ignore value; the counts are in the message.
    """
    classes = np.full(label.shape, IGNORED, np.uint8)
    known = np.zeros(label.shape, bool) if plan.ignore is None else label == plan.ignore
    for index, value in enumerate(plan.values):
        here = label == value
        classes[here] = index
        known |= here
    if not known.all():
        values, counts = np.unique(label[~known], return_counts=True)
        seen = ", ".join(f"{v} ({n} voxels)" for v, n in list(zip(values, counts, strict=True))[:5])
        raise DataError(
            f"label holds {seen}; the classes are {plan.values}", where, "name every value in data.labels"
        )
    return classes


def normalise(
    image: np.ndarray, channels: Sequence[ChannelPlan], *, nonzero_only: bool = False
) -> np.ndarray:
    """Each channel of `image` (C, *S) scaled as its plan says; a constant channel becomes 0.

    Args:
        image: finite numbers.
        channels: one plan per channel.
        nonzero_only: compute per-case figures on non-zero voxels (images whose border is blank).
    """
    out = np.empty(image.shape, np.float32)
    for target, channel, plan in zip(out, image, channels, strict=True):
        if plan.scheme in ("ct", "rgb"):
            np.clip(channel, plan.low, plan.high, out=target)
            target -= plan.mean
            target /= plan.std
        elif plan.scheme == "none":
            target[...] = channel
        else:
            shift, scale = _own_scale(channel, plan.scheme, nonzero_only)
            np.subtract(channel, shift, out=target)
            target *= scale
    return out


def _own_scale(channel: np.ndarray, scheme: str, nonzero_only: bool) -> tuple[float, float]:
    seen = channel[channel != 0] if nonzero_only else channel
    if seen.size == 0:
        return 0.0, 0.0
    if scheme == "minmax":
        seen = channel
        shift, width = float(seen.min()), float(seen.max()) - float(seen.min())
    else:
        shift, width = float(seen.mean(dtype=np.float64)), float(seen.std(dtype=np.float64))
    # Rounding leaves a constant image with a tiny spread; dividing by it would blow up the noise.
    return (shift, 1 / width) if width > 1e-6 * max(1e-30, abs(shift)) else (shift, 0.0)


def resample(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Linear interpolation of (C, *S) to (C, *shape) over the same field of view.

    When an axis shrinks the kernel widens with it, so that nothing is skipped. Weights are positive and sum
    to one: a probability map stays one. The array itself is returned when nothing changes.
    """
    for axis, size in enumerate(shape, start=1):
        if array.shape[axis] != size:
            array = _resample_axis(array, axis, size)
    return array


def _resample_axis(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    weights = _weights(array.shape[axis], size)
    front = np.moveaxis(array, axis, 0)
    flat = weights @ np.ascontiguousarray(front).reshape(len(front), -1).astype(np.float32, copy=False)
    return np.moveaxis(flat.reshape(size, *front.shape[1:]), 0, axis)


@lru_cache(maxsize=64)
def _weights(size: int, new: int) -> Any:
    """Sparse (new, size) interpolation weights for voxels as cells of one field of view; not to be changed."""
    from scipy.sparse import csr_matrix

    step = size / new
    width = max(1.0, step)
    centre = (np.arange(new) + 0.5) * step - 0.5
    index = np.floor(centre - width)[:, None].astype(int) + np.arange(int(2 * np.ceil(width)) + 2)
    weight = np.clip(1 - np.abs(index - centre[:, None]) / width, 0, None)
    weight[(index < 0) | (index >= size)] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(new), index.shape[1])
    used = weight.ravel() > 0
    entries = (weight.ravel()[used].astype(np.float32), (rows[used], index.ravel()[used]))
    return csr_matrix(entries, shape=(new, size))


def resample_label(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Integers (*S) to (*shape): linear per value, the largest wins; smoother than nearest at borders."""
    if label.shape == tuple(shape):
        return label
    best = np.zeros(shape, np.float32)
    out = np.zeros(shape, label.dtype)
    for value in np.unique(label):  # one value at a time: two float maps in memory, however many classes
        share = resample((label == value)[None].astype(np.float32), shape)[0]
        better = share > best + 1e-6
        out[better], best[better] = value, share[better]
    return out


def _check_grid(grid: tuple[int, ...], image: np.ndarray, spacing_mm: Sequence[float], where: object) -> None:
    """Refuse before anything is allocated: ten pixels of a kilometre are millions of a millimetre.

    What was read itself, perhaps by a raised limit, may grow to twice its size along each axis.
    """
    limit = max(MAX_VOXELS, 2**3 * image.size) // len(image)
    if prod(grid) > limit:
        voxel = " x ".join(f"{size:g}" for size in spacing_mm)
        fact = f"its voxels of {voxel} mm would become {prod(grid):,}; the limit is {limit:,}"
        raise DataError(fact, where, "is the voxel size right? correct it in the header, or cut the image")


def _check_shapes(
    image: np.ndarray,
    label: np.ndarray | None,
    ignore_mask: np.ndarray | None,
    raters: Sequence[np.ndarray],
    plan: Plan,
    where: object,
) -> None:
    if image.ndim != plan.ndim + 1:
        raise DataError(f"image is {image.ndim - 1}-D; this run works on {plan.ndim}-D images", where)
    if len(image) != plan.in_channels:
        names = ", ".join(channel.name for channel in plan.channels)
        raise DataError(f"{len(image)} channel(s); {plan.in_channels} are expected ({names})", where)
    masks = (("label", label), ("ignore mask", ignore_mask), *(("rater's label", mask) for mask in raters))
    for name, array in masks:
        if array is not None and array.shape != image.shape[1:]:
            raise DataError(f"image is {image.shape[1:]}, {name} is {array.shape}", where)
