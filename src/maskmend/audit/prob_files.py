"""The numbers of one file of probabilities: an array or a volume, read without running anything in it, and checked."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from maskmend.data.case import Geometry
from maskmend.data.formats import ExtraAxes
from maskmend.data.images import read_image
from maskmend.errors import DataError, ResourceError

ARRAYS = (".npz", ".npy")
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")
KEYS = ("probabilities", "softmax", "probs", "pred", "arr_0")
NEAR_ONE = 0.02
AT_ONCE = 1 << 15  # voxels that are checked together


def load(path: Path, labels: Sequence[str], voxels: int) -> np.ndarray:
    """The array of a .npy file, or the one of a .npz archive that holds probabilities.

    The array's own header is read first: Python objects (pickles) and more values than the case can have are
    refused before anything is unpacked.

    Args:
        path: of the file. labels: of the classes. voxels: of the mask.

    Raises:
        DataError: no array of numbers, or several.
        ResourceError: more values than the case can have.
    """
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                _guard(file, path, labels, voxels)
            return np.asarray(np.load(path, allow_pickle=False))
        with zipfile.ZipFile(path) as archive:
            member = _member(archive, path)
            with archive.open(member) as packed:
                _guard(packed, path, labels, voxels)
            with archive.open(member) as packed:
                return np.lib.format.read_array(packed, allow_pickle=False)
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        SyntaxError,
    ) as fault:
        # RuntimeError: encrypted, or packed in a way that Python does not know
        raise DataError(f"cannot be read as a NumPy array ({fault})", path) from fault


def volume(
    path: Path, channels: int | None, labels: Sequence[str], voxels: int
) -> tuple[np.ndarray, Geometry]:
    """A volume with a header, (K, *S) or (1, *S), and where it lies.

    Args:
        path: of the file. channels: that it holds; None: as many as there are `labels`, or one fewer, or one.
        labels: of the classes. voxels: of the mask.
    """
    try:
        return read_image(path, channels=channels or len(labels))
    except DataError:
        return _other_channels(path, labels, voxels)


def _other_channels(path: Path, labels: Sequence[str], voxels: int) -> tuple[np.ndarray, Geometry]:
    """Of one class alone, or of all but the background."""
    try:
        return read_image(path)
    except ExtraAxes as fault:
        axes = fault.axes
        if prod(axes[:-1]) == voxels and axes[-1] == len(labels) - 1:
            return read_image(path, channels=axes[-1])
        if prod(axes[:-1]) == voxels:
            raise miscounted(axes[-1], axes, labels, path) from None
        if prod(axes[1:]) == voxels and axes[0] in (len(labels), len(labels) - 1):
            fact = f"has its classes on the first of the axes {' x '.join(map(str, axes))}"
            remedy = "they belong on the last one: np.moveaxis(probs, 0, -1) before it is saved"
            raise DataError(fact, path, remedy) from None
        raise


def probabilities(array: np.ndarray, path: Path) -> np.ndarray:
    """An array (K, *S) of numbers as float32, or a refusal; part by part, each looked at while the cache holds it."""
    given = np.ascontiguousarray(array).reshape(len(array), -1)
    probs = given if given.dtype == np.float32 else np.empty(given.shape, np.float32)
    low, high, least, most = np.inf, -np.inf, np.inf, -np.inf
    for start in range(0, given.shape[1], AT_ONCE):
        part = probs[:, start : start + AT_ONCE]
        if probs is not given:
            _copied(given[:, start : start + AT_ONCE], part)
        total = part.sum(axis=0)
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        least, most = min(least, float(total.min())), max(most, float(total.max()))
        if not np.isfinite(total).all():
            raise DataError("holds NaN or infinite values", path, "export the probabilities again")
    if low < -1e-3 or high > 1 + NEAR_ONE:
        fact = f"values from {low:.3g} to {high:.3g} are no probabilities"
        raise DataError(fact, path, "logits or percentages? apply a softmax over the classes first")
    if max(1 - least, most - 1) > NEAR_ONE:
        fact = f"the classes' probabilities add up to {least:.3g} ... {most:.3g}, not 1"
        raise DataError(fact, path, "give a softmax over all classes, background included")
    return probs.reshape(array.shape)


def _copied(source: np.ndarray, target: np.ndarray) -> None:
    """Half precision by torch, which uses the processor's own conversion; three times faster than NumPy's."""
    if source.dtype == np.float16 and source.flags.writeable:  # torch warns of others
        import torch

        for ours, theirs in zip(target, source, strict=True):  # so few at once that no threads are started
            torch.from_numpy(ours).copy_(torch.from_numpy(theirs))
    else:
        target[...] = source


def refuse_overlaps(probs: np.ndarray, path: Path) -> None:
    """Refuse channels without a background that are no classes, of which each voxel has one."""
    most = float(probs.sum(axis=0, dtype=np.float64).max(initial=0.0))
    if 1 + NEAR_ONE < most <= len(probs) * (1 + NEAR_ONE):
        fact = (
            f"{len(probs)} channels without a background that add up to {most:.3g}: "
            "regions, or a sigmoid for each class?"
        )
        remedy = (
            "give probabilities of classes, background first: of regions within one another each less the next; "
            "of sigmoids p / (1 - p) and 1 for the background, divided by their sum"
        )
        raise DataError(fact, path, remedy)


def miscounted(count: int, shape: Sequence[int], labels: Sequence[str], path: Path) -> DataError:
    """What to say of an array of this shape with so many classes, where there are these labels."""
    fact = f"{count} classes in an array of shape {tuple(shape)}, the data set has {len(labels)}"
    where = "first" if path.suffix in ARRAYS else "on the last axis"
    return DataError(fact, path, f"classes come {where}, in this order: {', '.join(labels)}")


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    """Only names that NumPy gives are looked up; nothing is ever extracted to the disk."""
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    key = next((key for key in KEYS if key in names), names[0] if len(names) == 1 else None)
    if key is None:
        listed = ", ".join(names[:10]) or "none"
        raise DataError(f"holds the arrays {listed}", path, f"one of them must be called {KEYS[0]}")
    return f"{key}.npy"


def _guard(file: IO[bytes], path: Path, labels: Sequence[str], voxels: int) -> None:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise DataError(
            "holds Python objects, which are never loaded", path, "save numbers: probs.astype('float32')"
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 16:
        raise DataError(f"holds {str(dtype)[:40]} values, which are no probabilities", path)
    most_values = len(labels) * voxels
    if prod(shape) > most_values:
        for count in (shape[0], shape[-1]):
            if count * voxels == prod(shape):
                raise miscounted(count, shape, labels, path)
        fact = f"claims {' x '.join(map(str, shape))} values; the case has {most_values:,}"
        raise ResourceError(fact, path, "export the probabilities on the image's own grid")
