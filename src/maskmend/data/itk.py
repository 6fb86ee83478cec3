"""NRRD and MetaImage (.mha) through SimpleITK, an optional extra; the bytes are verified before it reads."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.data.case import Geometry
from maskmend.data.formats import Header, Limits, guard_size, inflate, placed, spatial_axes, suffix_of
from maskmend.errors import DataError, UsageError

_AGAIN = "export it again"
_HEADER_BYTES = 1 << 16
_LONGEST_LINE = 1000  # SimpleITK's own reader has room for 1023
_MOST_AXES, _MOST_CHANNELS = 5, 1024
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK counts towards left and posterior, NIfTI the other way


def read_header(path: Path, limits: Limits) -> Header:
    """Shape, spacing and type without pixels."""
    return _described(_information(path), path, limits)


def read(path: Path, limits: Limits) -> tuple[np.ndarray, Header]:
    """All voxels, (C, *S) in the stored type."""
    sitk = _simpleitk()
    reader = _information(path)
    header = _described(reader, path, limits)
    components = reader.GetNumberOfComponents()
    width = np.dtype(_dtype(reader, path)).itemsize
    _verify(path, prod(reader.GetSize()) * components * width)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise DataError(f"cannot be decoded ({_last_line(error)})", path, "export it again") from error
    array = sitk.GetArrayFromImage(image)
    if components > 1:
        array = np.moveaxis(array, -1, 0)
    return array.reshape(header.channels, *header.shape), header


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, *S) voxels as they are typed, compressed, with geometry and no other header field."""
    sitk = _simpleitk()
    many = len(array) > 1
    image = sitk.GetImageFromArray(np.moveaxis(array, 0, -1) if many else array[0], isVector=many)
    ndim = geometry.ndim
    image.SetSpacing([float(s) for s in geometry.spacing_mm[::-1]])
    if geometry.affine is not None:
        lps = _TO_RAS @ geometry.affine
        image.SetOrigin([float(v) for v in lps[:ndim, 3]])
        spacing = np.array(geometry.spacing_mm[::-1])
        direction = lps[:ndim, :ndim] / spacing
        if abs(np.linalg.det(direction)) > 1e-6:
            image.SetDirection([float(v) for v in direction.ravel()])
    sitk.WriteImage(image, str(path), useCompression=True)


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        remedy = "pip install 'maskmend[formats]'"
        raise UsageError("NRRD and MetaImage files need SimpleITK, which is missing", None, remedy) from error
    return SimpleITK


def _information(path: Path) -> Any:
    sitk = _simpleitk()
    with path.open("rb") as file:
        fields, _ = _text_header(file.read(_HEADER_BYTES), path)
    _check_fields(fields, path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"the header is damaged ({_last_line(error)})", path, "export it again") from error
    return reader


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def _dtype(reader: Any, path: Path) -> str:
    sitk = _simpleitk()
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    match = re.search(r"(\d+)-bit (signed|unsigned) integer|(\d+)-bit float", name)
    if not match or "complex" in name:
        raise DataError(f"holds {name} voxels, which are no intensities", path, "export real numbers")
    bits, sign, float_bits = match.groups()
    return f"float{float_bits}" if float_bits else f"{'u' if sign == 'unsigned' else ''}int{bits}"


def _described(reader: Any, path: Path, limits: Limits) -> Header:
    dims = tuple(int(n) for n in reader.GetSize())
    components = int(reader.GetNumberOfComponents())
    guard_size((*dims, components), path, limits)
    axes, channels = spatial_axes(dims, path, limits)
    ndim, stored = len(axes), len(dims)
    spacing = np.array(reader.GetSpacing(), float)
    direction = np.array(reader.GetDirection(), float).reshape(stored, stored)
    affine = np.eye(4)
    keep = min(stored, 3)
    affine[:keep, :keep] = (direction * spacing)[:keep, :keep]
    affine[:keep, 3] = np.array(reader.GetOrigin(), float)[:keep]
    header = Header("itk", axes[::-1], (1.0,) * ndim, None, channels * components, _dtype(reader, path))
    return placed(header, _TO_RAS @ affine, tuple(spacing[:ndim][::-1]), path, limits)


def _check_fields(fields: dict[str, str], path: Path) -> None:
    """Counts of numbers that SimpleITK trusts: with wrong ones it may read beyond its memory and crash."""
    meta = suffix_of(path) == ".mha"
    ndim = _whole(fields.get("ndims" if meta else "dimension", ""))
    sizes = fields.get("dimsize" if meta else "sizes", "").split()
    if not 1 <= ndim <= _MOST_AXES or len(sizes) != ndim or not all(_whole(size) > 0 for size in sizes):
        raise DataError(f"the header is damaged: {ndim} axes of sizes {' '.join(sizes)[:60]!r}", path, _AGAIN)
    counts = dict.fromkeys(("elementspacing", "elementsize", "offset", "position", "origin"), ndim)
    counts |= dict.fromkeys(("transformmatrix", "rotation", "orientation"), ndim * ndim)
    counts |= {"centerofrotation": ndim, "elementnumberofchannels": 1, "headersize": 1}
    for name, count in counts.items() if meta else ():
        words = fields.get(name, "").split()
        if words and (len(words) != count or not all(map(_is_number, words))):
            raise DataError(f"the header is damaged: {name} is {' '.join(words)[:60]!r}", path, _AGAIN)
    if _whole(fields.get("elementnumberofchannels", "1")) not in range(1, _MOST_CHANNELS + 1):
        raise DataError(f"claims {fields['elementnumberofchannels'][:20]} channels", path, _AGAIN)


def _whole(text: str) -> int:
    """A number of up to nine digits, else -1."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return len(text) <= 40


def _verify(path: Path, expected: int) -> None:
    """SimpleITK reads a cut file without an error and fills it with zeros, so bytes are counted first."""
    raw = path.read_bytes()
    fields, start = _text_header(raw, path)
    encoding = fields.get("encoding") or ("zlib" if fields.get("compresseddata") == "true" else "raw")
    body = raw[start:]
    if encoding in ("gzip", "gz"):
        body = inflate(body, path, expected)
    elif encoding == "zlib":
        body = inflate(body, path, expected, wrapper=15)
    elif encoding not in ("raw",):
        raise DataError(f"uses the encoding {encoding!r}", path, "export it as raw or gzip")
    if len(body) < expected:
        fact = f"ends early: {len(body):,} of {expected:,} bytes of voxels"
        raise DataError(fact, path, "copy it again from its source")


def _text_header(raw: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Lower-case fields and the byte where voxels begin; voxels in a second file are refused."""
    if suffix_of(path) == ".mha":
        match = re.search(rb"^ElementDataFile\s*=\s*(\S+)[^\n]*\n", raw[:_HEADER_BYTES], re.M)
        separator, local = "=", bool(match) and match is not None and match.group(1) == b"LOCAL"
    else:
        match = re.search(rb"\r?\n\r?\n", raw[:_HEADER_BYTES])
        separator, local = ":", match is not None
    if match is None:
        raise DataError("ends early: the header is not complete", path, "copy it again from its source")
    lines = raw[: match.end()].decode("latin-1").splitlines()
    if any(len(line) > _LONGEST_LINE for line in lines):
        raise DataError("the header is damaged: a line without end", path, _AGAIN)
    pairs = (line.partition(separator) for line in lines if separator in line and not line.startswith("#"))
    fields = {key.strip().lower().replace(" ", ""): value.strip().lower() for key, _, value in pairs}
    if not local or "datafile" in fields:
        raise DataError(
            "keeps its voxels in another file", path, "save it as one file (.nrrd, .mha or .nii.gz)"
        )
    return fields, match.end()
