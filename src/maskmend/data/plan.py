"""From a fingerprint to the settings of preprocessing and training: every number can be overridden."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from maskmend.data.case import Dataset
from maskmend.data.fingerprint import ChannelFacts, Fingerprint
from maskmend.errors import DataError, UsageError

Scheme = Literal["zscore", "ct", "rgb", "minmax", "none"]

MOST_CLASSES = 254
"""Class indices fit a byte, of which one value says "not annotated"."""

# Voxels of one patch. On a CPU a step must stay near a second; a GPU has the memory for nnU-Net's sizes.
_PATCH_VOXELS = {"cpu": {2: 256 * 256, 3: 64 * 96 * 96}, "cuda": {2: 512 * 512, 3: 128 * 128 * 128}}
_BATCH_VOXELS = {2: 16 * 96 * 96, 3: 2 * 64 * 96 * 96}
_BATCH_RANGE = {2: (4, 16), 3: (2, 4)}
_DEPTH_MOST = 4
_BOTTLENECK_LEAST = 4
_PADDING_MOST = {2: 1.3, 3: 1.5}  # a level is not worth computing this many times the voxels
_CROP_PAYS_BELOW = 0.75  # of the volume; a smaller saving is not worth a second coordinate frame


class ChannelPlan(BaseModel):
    """How one channel's intensities become numbers near 0.

    "ct" and "rgb" use the same window and scale for every case, because the numbers mean something;
    "zscore" and "minmax" are computed per case, because in other modalities they do not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    scheme: Scheme
    low: float | None = None
    high: float | None = None
    mean: float = 0.0
    std: float = 1.0


class Plan(BaseModel):
    """Everything that preprocessing, sampling and the network's shape depend on; stored with the run.

    Args:
        ndim: 2 or 3.
        spacing_mm: voxel size of prepared arrays, array order.
        input_spacing_mm: voxel size of the input files where the user had to say it; None: as in the file.
        spacing_tolerance: a case whose spacing is off by no more than this share is not resampled.
        shape: voxels that every case is resampled to, whatever its size; `spacing_mm` is then what that makes of the
            median case. None: the spacing decides.
        channels: one entry per channel, in order.
        crop: cut away the zero border of each image.
        classes: class name to file value, sorted by value; their order is the class index 0..K-1.
        ignore: the file value for "not annotated".
        patch: training patch, array order; every axis a multiple of 2^depth.
        batch: patches per step.
        depth: number of stride-2 levels of the network.
        flips: for each axis, whether mirrored images are plausible.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    ndim: int = Field(ge=2, le=3)
    spacing_mm: tuple[float, ...]
    input_spacing_mm: tuple[float, ...] | None = None
    spacing_tolerance: float = Field(default=0.1, ge=0)
    shape: tuple[int, ...] | None = None
    channels: tuple[ChannelPlan, ...]
    crop: bool = False
    classes: dict[str, int]
    ignore: int | None = None
    patch: tuple[int, ...]
    batch: int = Field(ge=1)
    depth: int = Field(ge=1)
    flips: tuple[bool, ...]

    @property
    def values(self) -> list[int]:
        """File values in class order."""
        return list(self.classes.values())

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """C."""
        return len(self.channels)


def make_plan(dataset: Dataset, fingerprint: Fingerprint, config: Any) -> Plan:
    """Choose spacing, normalisation, crop, patch, batch, depth and flips from the fingerprint and `config`.

    Args:
        dataset: gives the class names and values; these must be known (`infer_labels`).
        fingerprint: of its training cases.
        config: what is not None or "auto" in `config.data` and `config.train` wins over the fingerprint.

    Raises:
        DataError: the classes are not known.
        UsageError: an override does not fit the data (dimensions, patch not divisible).
    """
    ndim, data = fingerprint.ndim, config.data
    target = _per_axis("data.target_spacing_mm", data.target_spacing_mm, ndim)
    shape = _per_axis("data.shape", data.shape, ndim)
    spacing_mm = target or (_stretched(fingerprint, shape) if shape else fingerprint.median_spacing_mm)
    tolerance = 0.01 if target else 0.1  # a spacing the user asked for is meant exactly
    crop = _crop_pays(fingerprint)
    asked = _per_axis("train.patch", config.train.patch, ndim)
    budget = _PATCH_VOXELS[_device_kind(getattr(config, "device", "cpu"))][ndim]
    median = shape or _median_shape(fingerprint, spacing_mm, tolerance, crop)
    patch, depth = asked_patch(asked) if asked else choose_patch(median, budget)
    return Plan(
        ndim=ndim,
        spacing_mm=spacing_mm,
        input_spacing_mm=dataset.spacing_mm,
        spacing_tolerance=tolerance,
        shape=shape,
        channels=tuple(_channel(facts, data.normalise) for facts in fingerprint.channels),
        crop=crop,
        classes=_classes(dataset),
        ignore=dataset.ignore,
        patch=patch,
        batch=config.train.batch or choose_batch(patch),
        depth=depth,
        flips=_flips(data.flips, fingerprint, dataset),
    )


def choose_patch(shape: Sequence[int], most_voxels: int) -> tuple[tuple[int, ...], int]:
    """The patch that covers `shape` as far as `most_voxels` allows, and the network depth it supports.

    The depth is the largest (up to 4) that leaves at least 4 voxels per axis at the bottleneck without much
    padding, and not less than 2; each axis is rounded up to a multiple of 2^depth.

    Example:
        >>> choose_patch((35, 51, 35), 64 * 96 * 96)
        ((40, 56, 40), 3)
        >>> choose_patch((540, 800), 256 * 256)
        ((224, 288), 4)
    """
    shrink = min(1.0, (most_voxels / math.prod(shape)) ** (1 / len(shape)))
    # A short axis stays whole; the long ones pay for it.
    size = [max(min(n, 16), n * shrink) for n in shape]
    depth = max((d for d in range(3, _DEPTH_MOST + 1) if _deep_enough(size, d)), default=2)
    step = 2**depth
    patch = [step * math.ceil(n / step) for n in size]
    while math.prod(patch) > most_voxels and max(patch) > step * _BOTTLENECK_LEAST:
        patch[int(np.argmax(patch))] -= step
    return tuple(patch), depth


def _deep_enough(size: Sequence[float], depth: int) -> bool:
    cells = [math.ceil(n / 2**depth) for n in size]
    padding: float = math.prod(n * 2.0**depth for n in cells) / math.prod(size)
    return min(cells) >= _BOTTLENECK_LEAST and padding <= _PADDING_MOST[len(cells)]


def asked_patch(patch: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The patch the user asked for and the depth it supports; UsageError if it cannot be halved twice."""
    if any(n % 4 for n in patch):
        better = ",".join(str(max(4, 4 * round(n / 4))) for n in patch)
        raise UsageError(
            f"{list(patch)} must be multiples of 4 (of 16 for the deepest network)",
            "train.patch",
            f"try train.patch=[{better}]",
        )
    fits = [d for d in range(3, _DEPTH_MOST + 1) if all(n % 2**d == 0 and n // 2**d >= 4 for n in patch)]
    return tuple(patch), max(fits, default=2)


def choose_batch(patch: Sequence[int]) -> int:
    """Patches per step: a power of two, 4-16 in 2-D and 2-4 in 3-D, fewer the larger the patch."""
    least, most = _BATCH_RANGE[len(patch)]
    room = max(1.0, _BATCH_VOXELS[len(patch)] / math.prod(patch))
    return min(most, max(least, 1 << int(math.log2(room))))


def _device_kind(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _per_axis(key: str, value: Sequence[Any] | None, ndim: int) -> tuple[Any, ...] | None:
    if value is None:
        return None
    if len(value) != ndim or any(v <= 0 for v in value):
        raise UsageError(f"{list(value)} needs {ndim} positive numbers, one per axis of the images", key)
    return tuple(value)


def _classes(dataset: Dataset) -> dict[str, int]:
    classes = {name: int(v) for name, v in dataset.labels.items() if v != dataset.ignore}
    if len(classes) < 2:
        what = f"{len(classes)} class(es) known; background and at least one more are needed"
        raise DataError(what, dataset.root, 'name them, e.g. data.labels="{background: 0, organ: 1}"')
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{len(classes)} classes; at most {MOST_CLASSES} are supported", dataset.root)
    return dict(sorted(classes.items(), key=lambda item: item[1]))


def _crop_pays(fingerprint: Fingerprint) -> bool:
    kept = [math.prod(case.nonzero) / math.prod(case.shape) for case in fingerprint.cases]
    return bool(np.mean(kept) < _CROP_PAYS_BELOW)


def _stretched(fingerprint: Fingerprint, shape: Sequence[int]) -> tuple[float, ...]:
    """Median voxel size when every case is brought to `shape`."""
    sizes = [
        [n * size / new for n, size, new in zip(case.shape, case.spacing_mm, shape, strict=True)]
        for case in fingerprint.cases
    ]
    return tuple(float(v) for v in np.median(sizes, axis=0))


def prepared_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float], tolerance: float
) -> tuple[int, ...]:
    """The grid that covers the same field of view at the target spacing; `shape` itself when close enough."""
    ratio = [s / t for s, t in zip(spacing_mm, target_mm, strict=True)]
    if all(1 / (1 + tolerance) <= r <= 1 + tolerance for r in ratio):
        return tuple(shape)
    return tuple(max(1, round(n * r)) for n, r in zip(shape, ratio, strict=True))


def _median_shape(
    fingerprint: Fingerprint, target_mm: Sequence[float], tolerance: float, crop: bool
) -> tuple[int, ...]:
    shapes = [
        prepared_shape(case.nonzero if crop else case.shape, case.spacing_mm, target_mm, tolerance)
        for case in fingerprint.cases
    ]
    return tuple(int(n) for n in np.ceil(np.median(shapes, axis=0)))


def _channel(facts: ChannelFacts, normalise: str) -> ChannelPlan:
    scheme: Any = _scheme(facts.name) if normalise == "auto" else normalise
    if scheme == "ct":
        seen = facts.foreground or facts.all
        std = seen.std if seen.std > 0 else 1.0
        return ChannelPlan(
            name=facts.name, scheme="ct", low=seen.p00_5, high=seen.p99_5, mean=seen.mean, std=std
        )
    if scheme == "rgb":
        top = next((t for t in (1.0, 255.0, 65535.0) if facts.all.maximum <= t), facts.all.maximum)
        return ChannelPlan(name=facts.name, scheme="rgb", low=0.0, high=top, mean=top / 2, std=top / 4)
    return ChannelPlan(name=facts.name, scheme=scheme)


def _scheme(name: str) -> Scheme:
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & {"ct", "cta", "cbct", "hu"}:
        return "ct"
    if words & {"r", "g", "b", "red", "green", "blue", "rgb"}:
        return "rgb"
    return "zscore"


def _flips(asked: str | Sequence[bool], fingerprint: Fingerprint, dataset: Dataset) -> tuple[bool, ...]:
    """Which axes may be mirrored.

    "auto" mirrors only what a body could look like: left and right, and not even these when class names
    tell sides apart. The axis comes from the affine; without one it is the last (image width). Colour images
    (microscopy, skin, endoscopy) have no preferred side and are mirrored along both axes.
    """
    ndim = fingerprint.ndim
    if not isinstance(asked, str):
        if len(asked) != ndim:
            raise UsageError(f"{list(asked)} needs {ndim} entries, one per axis", "data.flips")
        return tuple(bool(v) for v in asked)
    if asked in ("none", "all"):
        return (asked == "all",) * ndim
    if any(_SIDED.search(name) for name in dataset.labels):
        return (False,) * ndim
    if ndim == 2 and all(_scheme(channel.name) == "rgb" for channel in fingerprint.channels):
        return (True,) * ndim
    axes = {ndim - 1 if case.left_right is None else case.left_right for case in fingerprint.cases}
    return tuple(len(axes) == 1 and axis in axes for axis in range(ndim))


_SIDED = re.compile(r"(?i)(?<![a-z])(left|right|lt|rt|l|r|lv|rv|la|ra|links|rechts)(?![a-z])")
