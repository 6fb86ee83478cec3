"""What a training set is like: sizes, spacings, intensities, class sizes. The plan is made from this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from maskmend.boxes import bounding_box
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.images import read_case, read_label
from maskmend.errors import DataError

_VOXELS_PER_CASE = 20_000  # enough for stable 0.5 % percentiles over a data set, small enough for any memory
_VOXELS = 1 << 23  # of all cases together, per channel: beyond it every case keeps half as many, and so on


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Intensity(_Facts):
    """Summary of voxel values of one channel; the extremes are exact, the rest comes from a subsample."""

    minimum: float
    p00_5: float
    median: float
    p99_5: float
    maximum: float
    mean: float
    std: float


class ChannelFacts(_Facts):
    """One channel over all training cases; `foreground` is None when no voxel is labelled as foreground."""

    name: str
    all: Intensity
    foreground: Intensity | None


class CaseFacts(_Facts):
    """One case: its grid, its label and the part of it that is not zero.

    Args:
        id: the case.
        shape: spatial shape in array order.
        spacing_mm: voxel size in array order.
        nonzero: shape of the smallest box that holds every non-zero voxel of any channel.
        voxels: file value to voxel count; empty when the case has no label.
        left_right: the array axis along which the patient's left and right lie, None when not known.
    """

    id: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    nonzero: tuple[int, ...]
    voxels: dict[int, int]
    left_right: int | None


class Fingerprint(_Facts):
    """What the training cases have in common and where they differ."""

    ndim: int
    cases: tuple[CaseFacts, ...]
    channels: tuple[ChannelFacts, ...]
    background: int = 0
    ignore: int | None = None

    @property
    def median_spacing_mm(self) -> tuple[float, ...]:
        """Median voxel size per axis."""
        return tuple(float(v) for v in np.median([case.spacing_mm for case in self.cases], axis=0))

    @property
    def class_voxels(self) -> dict[int, int]:
        """File value to voxel count over all cases."""
        total: dict[int, int] = {}
        for case in self.cases:
            for value, count in case.voxels.items():
                total[value] = total.get(value, 0) + count
        return dict(sorted(total.items()))

    @property
    def empty_masks(self) -> tuple[str, ...]:
        """Cases that have a label with no foreground voxel in it."""
        silent = {self.background, self.ignore}
        return tuple(case.id for case in self.cases if case.voxels and not set(case.voxels) - silent)


def fingerprint(
    dataset: Dataset,
    *,
    labels: Callable[[Case], Path | None] | None = None,
    progress: Callable[[Sequence[Case]], Iterable[Case]] | None = None,
) -> Fingerprint:
    """Read every training case once and summarise it.

    Args:
        dataset: its training cases are read; test cases are never looked at.
        labels: which label of a case to use (for example one rater's); the given label by default.
        progress: wraps the cases to show how far along they are, e.g. `progress.track`.

    Raises:
        DataError: there is no training case, or cases differ in dimension or number of channels.
    """
    if not dataset.train:
        raise DataError("no training case", dataset.root)
    background = min(dataset.labels.values(), default=0)
    facts: list[CaseFacts] = []
    pools: list[_Pool] = []
    for case in progress(dataset.train) if progress else dataset.train:
        image, geometry = read_case(case, dataset)
        path = labels(case) if labels else case.label
        label = read_label(path)[0] if path is not None else None
        if label is not None and label.shape != image.shape[1:]:
            raise DataError(f"image is {image.shape[1:]}, label is {label.shape}", case.id)
        pools = pools or [_Pool() for _ in image]
        _same_kind(case, geometry, len(image), facts, pools)
        facts.append(_case_facts(case, image, label, geometry, dataset.spacing_mm))
        silent = [background] if dataset.ignore is None else [background, dataset.ignore]
        foreground = None if label is None else ~np.isin(label, silent)
        for channel, pool in zip(image, pools, strict=True):
            pool.add(channel, foreground)
    names = (
        dataset.channels if len(dataset.channels) == len(pools) else default_names(facts[0].shape, len(pools))
    )
    return Fingerprint(
        ndim=len(facts[0].shape),
        cases=tuple(facts),
        channels=tuple(pool.facts(name) for name, pool in zip(names, pools, strict=True)),
        background=background,
        ignore=dataset.ignore,
    )


def default_names(shape: Sequence[int], channels: int) -> tuple[str, ...]:
    """Channel names when the data set gives none: a flat image with three channels is a colour image."""
    if len(shape) == 2 and channels == 3:
        return ("R", "G", "B")
    return tuple(f"channel_{i}" for i in range(channels))


def finite(channel: np.ndarray) -> np.ndarray:
    """The channel with NaN and infinities replaced by its background, the smallest finite value or 0."""
    good = np.isfinite(channel)
    if good.all():
        return channel
    background = channel[good].min() if good.any() else channel.dtype.type(0)
    return np.where(good, channel, background)


def nonzero_box(image: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(start, stop) per axis of the box around the non-zero voxels of `image` (C, *S); the whole if blank."""
    mask = (image != 0).any(axis=0)
    if not mask.any():
        return tuple((0, size) for size in mask.shape)
    return tuple((one.start, one.stop) for one in bounding_box(mask))


def _same_kind(
    case: Case, geometry: Geometry, channels: int, facts: list[CaseFacts], pools: list[_Pool]
) -> None:
    if facts and len(facts[0].shape) != geometry.ndim:
        what = f"{geometry.ndim}-D, while {facts[0].id} is {len(facts[0].shape)}-D"
        raise DataError(what, case.id, "put 2-D and 3-D images in data sets of their own")
    if channels != len(pools):
        what = f"{channels} channel(s), while {facts[0].id} has {len(pools)}"
        raise DataError(what, case.id, "give every case the same channels")


def _case_facts(
    case: Case,
    image: np.ndarray,
    label: np.ndarray | None,
    geometry: Geometry,
    spacing_mm: tuple[float, ...] | None,
) -> CaseFacts:
    voxels: dict[int, int] = {}
    if label is not None:
        values, counts = np.unique(label, return_counts=True)
        voxels = {int(v): int(n) for v, n in zip(values, counts, strict=True)}
    clean = np.stack([finite(channel) for channel in image])
    return CaseFacts(
        id=case.id,
        shape=tuple(int(n) for n in image.shape[1:]),
        spacing_mm=tuple(float(s) for s in (spacing_mm or geometry.spacing_mm)),
        nonzero=tuple(stop - start for start, stop in nonzero_box(clean)),
        voxels=voxels,
        left_right=_left_right(geometry),
    )


def _left_right(geometry: Geometry) -> int | None:
    """The array axis that runs between the patient's left and right, from the affine's first row."""
    if geometry.affine is None or geometry.ndim != 3:
        return None
    across: int = np.argmax(np.abs(geometry.affine[0, :3])).item()
    return 2 - across


class _Sample:
    """A fair draw of the voxels of all cases, of bounded size however many cases there are."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.parts: list[np.ndarray] = []
        self.size, self.halvings = 0, 0
        self.rng = np.random.Generator(np.random.PCG64(0))

    def add(self, values: np.ndarray) -> None:
        """The values (n,) of one case, n > 0."""
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
        if len(values) > _VOXELS_PER_CASE:
            picked = np.random.Generator(np.random.PCG64(0)).integers(0, len(values), _VOXELS_PER_CASE)
            some = values[picked]
        else:
            some = values.copy()
        for _ in range(self.halvings):
            some = self._half(some)
        self.parts.append(some)
        self.size += len(some)
        if self.size > _VOXELS:
            self.parts = [self._half(part) for part in self.parts]
            self.size = sum(map(len, self.parts))
            self.halvings += 1

    def _half(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values[self.rng.random(len(values)) < 0.5])

    def facts(self) -> Intensity:
        values = np.concatenate(self.parts).astype(np.float64)
        p00_5, median, p99_5 = (float(v) for v in np.percentile(values, [0.5, 50, 99.5]))
        return Intensity(
            minimum=float(self.low),
            p00_5=p00_5,
            median=median,
            p99_5=p99_5,
            maximum=float(self.high),
            mean=float(values.mean()),
            std=float(values.std()),
        )


class _Pool:
    """One channel: all of its voxels, and those labelled as foreground."""

    def __init__(self) -> None:
        self.all, self.foreground = _Sample(), _Sample()

    def add(self, channel: np.ndarray, foreground: np.ndarray | None) -> None:
        channel = finite(channel)
        self.all.add(channel.ravel())
        if foreground is not None and foreground.any():
            self.foreground.add(channel[foreground])

    def facts(self, name: str) -> ChannelFacts:
        inside = self.foreground.facts() if self.foreground.parts else None
        return ChannelFacts(name=name, all=self.all.facts(), foreground=inside)
