"""NIfTI volumes (.nii, .nii.gz), verified to the last byte before a voxel is believed."""

from __future__ import annotations

import gzip
import io
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.data.case import Geometry
from maskmend.data.formats import Header, Limits, guard_size, inflate, placed, spatial_axes, suffix_of
from maskmend.errors import DataError

_SLACK = 1 << 20  # bytes that may follow the voxels, such as a writer's padding


def read_header(path: Path, limits: Limits) -> Header:
    """Shape, spacing and type from the first bytes."""
    return _described(_parsed(_first_bytes(path), path), path, limits)


def read(path: Path, limits: Limits) -> tuple[np.ndarray, Header]:
    """All voxels, (C, *S) in the stored type or float64 where the header scales them."""
    raw = path.read_bytes()
    parsed = _parsed(_first_bytes(path), path)
    header = _described(parsed, path, limits)
    dtype, count, start = parsed.get_data_dtype(), prod(_dims(parsed)), int(parsed["vox_offset"])
    expected = start + count * dtype.itemsize
    if suffix_of(path) == ".nii.gz":
        raw = inflate(raw, path, expected + _SLACK)
    if len(raw) < expected:
        fact = f"ends early: {len(raw):,} of {expected:,} bytes"
        raise DataError(fact, path, "copy it again from its source")
    array = np.frombuffer(raw, dtype, count, start)
    return _scaled(_colours(array, header), parsed, path), header


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, *S) voxels as they are typed; the header holds geometry and nothing else.

    The bytes depend on voxels and geometry alone (no time, no name), so equal results are equal files.
    """
    import nibabel

    affine = geometry.affine
    if affine is None:
        affine = np.diag([*geometry.spacing_mm[::-1], 1.0, 1.0][:4])
    spatial = array.shape[1:] if geometry.ndim == 3 else (1, *array.shape[1:])
    voxels = array.reshape(spatial if len(array) == 1 else (len(array), *spatial)).T
    make: Any = nibabel.Nifti1Image  # untyped
    image = make(voxels, affine, dtype=array.dtype)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    if suffix_of(path) == ".nii.gz":
        data = gzip.compress(data, compresslevel=1 if array.dtype.kind == "f" else 6, mtime=0)
    path.write_bytes(data)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(1 << 14)
    if suffix_of(path) != ".nii.gz":
        return head
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 1024)
    except zlib.error as error:
        fact = f"fails its checksum or is damaged inside ({error})"
        raise DataError(fact, path, "copy it again from its source") from error


def _parsed(head: bytes, path: Path) -> Any:
    """The NIfTI-1 or NIfTI-2 header as nibabel's object."""
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    kind: Any = Nifti2Header if head[4:7] == b"n+2" else Nifti1Header
    if len(head) < kind.template_dtype.itemsize:
        raise DataError(
            f"ends early: {len(head)} bytes hold no NIfTI header", path, "copy it again from its source"
        )
    if head[344:347] != b"n+1" and head[4:7] != b"n+2":
        raise DataError("holds no single-file NIfTI volume", path, "export it again as .nii.gz")
    try:
        parsed = kind.from_fileobj(io.BytesIO(head[: kind.template_dtype.itemsize]), check=False)
        parsed.get_data_dtype()
    except (HeaderDataError, ValueError, KeyError) as error:
        raise DataError(f"the NIfTI header is damaged ({error})", path, "export it again") from error
    if not 352 <= float(parsed["vox_offset"]) < 1 << 28:
        raise DataError(
            f"the NIfTI header places voxels at byte {parsed['vox_offset']}", path, "export it again"
        )
    return parsed


def _dims(parsed: Any) -> tuple[int, ...]:
    count = int(parsed["dim"][0])
    return tuple(int(n) for n in parsed["dim"][1 : 1 + count]) if 1 <= count <= 7 else ()


def _described(parsed: Any, path: Path, limits: Limits) -> Header:
    dims, dtype = _dims(parsed), parsed.get_data_dtype()
    guard_size(dims, path, limits)
    axes, channels = spatial_axes(dims, path, limits)
    if dtype.names:  # the RGB types
        channels, dtype = len(dtype.names), dtype[0]
    if dtype.kind not in "biuf":
        raise DataError(f"holds {dtype} voxels, which are no intensities", path, "export real numbers")
    affine = _affine(parsed, path)
    spacing_mm = tuple(float(s) for s in parsed["pixdim"][1 : 1 + len(axes)])[::-1]
    header = Header("nifti", axes[::-1], spacing_mm, None, channels, np.dtype(dtype).newbyteorder("=").name)
    return placed(header, affine, spacing_mm, path, limits)


def _affine(parsed: Any, path: Path) -> np.ndarray:
    """What the header says of space; NaN where it contradicts itself, which `placed` reports or overrides."""
    from nibabel.spatialimages import HeaderDataError

    try:
        affine: np.ndarray = parsed.get_best_affine()
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        return np.full((4, 4), np.nan)
    return affine


def _colours(array: np.ndarray, header: Header) -> np.ndarray:
    if array.dtype.names:
        interleaved = array.view(array.dtype[0]).reshape(*header.shape, header.channels)
        return np.moveaxis(interleaved, -1, 0)
    return array.reshape(header.channels, *header.shape)


def _scaled(array: np.ndarray, parsed: Any, path: Path) -> np.ndarray:
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, intercept = parsed.get_slope_inter()
    except HeaderDataError as error:
        raise DataError(f"the intensity scale is not usable ({error})", path, "export it again") from error
    if slope is None or (slope, intercept or 0.0) == (1.0, 0.0):
        return array
    return array * float(slope) + float(intercept or 0.0)
