"""Read and write images and labels of every format by one call: verified, size-guarded, atomic.

Arrays are (C, D, H, W) or (C, H, W); labels lack the channel axis. NIfTI (x, y, z) arrives transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskmend.data import dicom, itk, nifti, raster
from maskmend.data.atomic import atomic_write
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.formats import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    MAX_VOXELS,
    Header,
    Limits,
    format_of,
    stem_of,
    suffix_of,
)
from maskmend.data.geometry_check import apart_mm
from maskmend.errors import DataError, UsageError

__all__ = [
    "IMAGE_SUFFIXES", "LABEL_SUFFIXES", "MAX_VOXELS", "Header", "atomic_write", "label_suffix", "read_case",
    "read_header", "read_image", "read_label", "require_one_grid", "stem_of", "suffix_of", "write_image", "write_label",
]  # fmt: skip


def read_header(
    path: Path, *, max_voxels: int = MAX_VOXELS, channels: int | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> Header:  # fmt: skip
    """What a file says about itself; no pixels are read, so a cut or flipped byte further on goes unnoticed.

    Args:
        path: an image file, or a folder with a DICOM series.
        max_voxels: refuse files that claim more.
        channels: how many channels a 4-D file holds; without it a fourth axis is an error.
        spacing_mm: true voxel size, slowest axis first, where the file's own is wrong.

    Raises:
        DataError: missing, empty, damaged, not an image, or an unusable geometry.
        ResourceError: too large.
    """
    path = Path(path)
    limits = _limits(max_voxels, channels, spacing_mm)
    module = {"nifti": nifti, "itk": itk, "dicom": dicom}.get(format_of(path), raster)
    header: Header = module.read_header(path, limits)
    return header


def read_image(
    path: Path | Sequence[Path], *, max_voxels: int = MAX_VOXELS, channels: int | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> tuple[np.ndarray, Geometry]:  # fmt: skip
    """Read an image, verified to its last byte.

    Args:
        path: one file, a DICOM folder, or one file per channel in channel order.
        max_voxels: refuse files that claim more.
        channels: how many channels the image must have; decides what a 4-D file's last axis is.
        spacing_mm: true voxel size, slowest axis first, where the file's own is wrong.

    Returns:
        (C, *S) float32, C-contiguous, and where its voxels lie. NaN and Inf pass through.

    Raises:
        DataError: any fault of the file, a wrong number of channels, or channel files on different grids.
        ResourceError: too large.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    if not paths:
        raise DataError("the case has no image")
    limits = _limits(max_voxels, channels if len(paths) == 1 else None, spacing_mm)
    parts = [_read(p, limits) for p in paths]
    require_one_grid(paths, [header for _, header in parts], by_voxels=spacing_mm is not None)
    arrays = [np.ascontiguousarray(array, dtype=np.float32) for array, _ in parts]
    image = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if channels is not None and len(image) != channels:
        raise DataError(f"has {len(image)} channels where {channels} are expected", paths[0])
    return image, parts[0][1].geometry


def require_one_grid(paths: Sequence[Path], headers: Sequence[Header], *, by_voxels: bool = False) -> None:
    """Refuse channel files whose voxels do not lie in the same places: they would be stacked all the same.

    Args:
        paths: one file per channel.
        headers: of each.
        by_voxels: the voxel size is given by hand, so only shapes count.

    Raises:
        DataError: shapes or places differ.
    """
    if len({header.shape for header in headers}) > 1:
        listed = ", ".join(f"{p.name} {h.shape}" for p, h in zip(paths, headers, strict=True))
        raise DataError(f"channel files differ in shape: {listed}", paths[0], "resample them to one grid")
    if by_voxels:
        return
    for path, header in zip(paths[1:], headers[1:], strict=True):
        if error := apart_mm(headers[0].geometry, header.geometry):
            fact = (
                f"channel files lie {error:.3g} mm apart at the corners (spacing, origin or direction differ)"
            )
            remedy = f"resample it onto the grid of {paths[0].name}; if its header is wrong, copy that file's into it"
            raise DataError(fact, path, remedy)


def read_label(
    path: Path, *, max_voxels: int = MAX_VOXELS, spacing_mm: Sequence[float] | None = None
) -> tuple[np.ndarray, Geometry]:
    """Read a label, verified to its last byte, as the values the file means: none is ever wrapped.

    A palette image gives its indices, an RGB image whose colours are all grey gives that grey.

    Returns:
        (*S) int32 file values (not class indices) and where the voxels lie.

    Raises:
        DataError: any fault of the file, JPEG, colours, several channels, NaN, or fractions.
        ResourceError: too large.
    """
    path = Path(path)
    array, header = _read(path, _limits(max_voxels, None, spacing_mm), label=True)
    if header.lossy:
        remedy = "get the original masks; JPEG changes values and cannot hold a label"
        raise DataError("a label saved as JPEG", path, remedy)
    return np.ascontiguousarray(_integers(_one_channel(array, path), path)), header.geometry


def read_case(
    case: Case, dataset: Dataset | None = None, *, max_voxels: int = MAX_VOXELS
) -> tuple[np.ndarray, Geometry]:
    """The image of a case, (C, *S) float32, with the data set's channels and spacing override applied.

    Raises:
        DataError, ResourceError: as `read_image`, with the case's id in front.
    """
    channels = len(dataset.channels) or None if dataset else None
    spacing_mm = dataset.spacing_mm if dataset else None
    return read_image(case.images, max_voxels=max_voxels, channels=channels, spacing_mm=spacing_mm)


def label_suffix(image: Path) -> str:
    """The suffix for a label that belongs to an image: the image's own where it can hold labels."""
    suffix = suffix_of(image)
    if suffix in LABEL_SUFFIXES:
        return suffix
    return ".png" if suffix in (".jpg", ".jpeg") else ".nii.gz"


def write_label(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a label atomically in the smallest integer type that holds its values.

    Args:
        path: the suffix decides the format. NIfTI is always written with three axes.
        array: (*S) integers, the shape of `geometry`.
        geometry: as the image's reader gave it. Nothing else of the image's header is copied.

    Raises:
        UsageError: a format that cannot hold the label. ResourceError: the disk is full.
    """
    path = Path(path)
    if suffix_of(path) not in LABEL_SUFFIXES:
        raise UsageError(
            f"labels cannot be written as {path.suffix or 'this'}", path, _one_of(LABEL_SUFFIXES)
        )
    array = np.asarray(array)
    if array.shape != geometry.shape or array.dtype.kind not in "biu":
        raise ValueError(f"expected integers of shape {geometry.shape}, got {array.dtype} {array.shape}")
    _write(path, array.astype(_smallest(array, path))[None], geometry)


def write_image(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write an image or a map atomically: float32, or integers in PNG and BMP where values are whole.

    Args:
        path: the suffix decides the format.
        array: (C, *S) or (*S) numbers.
        geometry: where the voxels lie.

    Raises:
        UsageError: a format that cannot hold these values, such as fractions in a PNG.
    """
    path = Path(path)
    if suffix_of(path) not in LABEL_SUFFIXES:
        raise UsageError(
            f"images cannot be written as {path.suffix or 'this'}", path, _one_of(LABEL_SUFFIXES)
        )
    array = np.asarray(array)
    array = array[None] if array.ndim == geometry.ndim else array
    if array.shape[1:] != geometry.shape:
        raise ValueError(f"expected (C, *{geometry.shape}), got {array.shape}")
    whole = array.dtype.kind in "biu" or (
        suffix_of(path) in (".png", ".bmp") and bool((array == np.rint(array)).all())
    )
    _write(path, array.astype(_smallest(array, path) if whole else np.float32), geometry)


def _limits(max_voxels: int, channels: int | None, spacing_mm: Sequence[float] | None) -> Limits:
    return Limits(max_voxels, channels, None if spacing_mm is None else tuple(map(float, spacing_mm)))


def _read(path: Path, limits: Limits, *, label: bool = False) -> tuple[np.ndarray, Header]:
    kind = format_of(path)
    if kind == "dicom":
        if label:
            remedy = "convert it to NIfTI first"
            raise DataError("labels are not read from DICOM (RTSTRUCT, SEG)", path, remedy)
        return dicom.read(path, limits)
    if kind == "nifti":
        return nifti.read(path, limits)
    if kind == "itk":
        return itk.read(path, limits)
    return raster.read(path, limits, indices=label)


def _one_channel(array: np.ndarray, path: Path) -> np.ndarray:
    if len(array) == 1:
        return np.asarray(array[0])
    if len(array) in (3, 4) and all((array[0] == other).all() for other in array[1:3]):
        return np.asarray(array[0])
    colours = np.unique(array.reshape(len(array), -1), axis=1).T
    shown = ", ".join(str(tuple(int(v) for v in colour)) for colour in colours[:6])
    raise DataError(
        f"a label with {len(array)} colour channels and {len(colours)} colours: {shown}",
        path,
        "colours need a mapping: save one grey value per class (0 background, 1, 2, ...), as PNG or NIfTI",
    )


def _integers(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataError("a label with NaN or Inf", path, "export it again as integers")
        whole = np.rint(array)
        if np.abs(array - whole).max(initial=0) > 1e-3:
            values = np.unique(array)
            if len(values) <= 16:
                listed = ", ".join(f"{value:g}" for value in values)
                fact = f"the label values {listed} are no whole numbers: scaled by the header (scl_slope)?"
                raise DataError(fact, path, "save labels as integers, unscaled")
            fact = f"{len(values)} values, not whole numbers: saved as JPEG or resized with interpolation?"
            raise DataError(fact, path, "resize labels with nearest neighbour, save them as integers")
        array = whole
    low, high = array.min(initial=0), array.max(initial=0)
    if low < -(2**31) or high >= 2**31:
        raise DataError(f"label values from {low} to {high}", path, "use small class numbers")
    return array.astype(np.int32)


def _smallest(array: np.ndarray, path: Path) -> np.dtype:
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    signed = suffix_of(path) not in (".png", ".bmp")  # PNG knows no signed numbers
    for kind in (np.uint8, np.int16, np.uint16, np.int32) if signed else (np.uint8, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    raise ValueError(f"values from {low} to {high} do not fit 32 bits")


def _write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    suffix = suffix_of(path)
    if suffix in (".nii", ".nii.gz"):
        atomic_write(path, lambda temporary: nifti.write(temporary, array, geometry))
    elif suffix in (".nrrd", ".mha"):
        atomic_write(path, lambda temporary: itk.write(temporary, array, geometry))
    else:
        raster.check_writable(path, array)
        atomic_write(path, lambda temporary: raster.write(temporary, array))


def _one_of(suffixes: Sequence[str]) -> str:
    return f"use one of {', '.join(suffixes)}"
