"""A folder with one DICOM series as a volume, through pydicom, an optional extra. Never labels."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.data.formats import Header, Limits, guard_size, placed, sniff
from maskmend.errors import DataError, UsageError, UserError

_PREAMBLE = 132  # bytes before the first element, "DICM" included
_DEFLATED = (
    "1.2.840.10008.1.2.1.99"  # the whole header compressed: pydicom would unpack it however large it gets
)
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_series(folder: Path) -> bool:
    """Whether a folder directly holds a DICOM file (the first few files decide)."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return any(sniff(p) == "dicom" for p in files[:5])


def read_header(path: Path, limits: Limits) -> Header:
    """Shape and spacing of the series, from the headers of all its files."""
    with _damage(path):
        return _described(_slices(path), path, limits)


def read(path: Path, limits: Limits) -> tuple[np.ndarray, Header]:
    """All voxels in the scanner's units (CT: Hounsfield), (1, D, H, W) float32; one file gives (1, H, W)."""
    with _damage(path):
        slices = _slices(path)
        header = _described(slices, path, limits)
        volume = np.stack([_pixels(file) for file, _ in slices])
        if volume.size != prod(header.shape):
            fact = f"holds {volume.size:,} pixels where its header claims {header.shape}"
            raise DataError(fact, path, "copy it again from its source")
    return volume.reshape(1, *header.shape), header


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What damaged or missing elements lead to, as one error: pydicom and its values raise many kinds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom remarks on elements nobody needs, with their values
            yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        fact = f"the DICOM header is damaged ({type(error).__name__})"
        raise DataError(fact, path, "export it again, or convert it to NIfTI first") from error


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        remedy = "pip install 'maskmend[formats]'"
        raise UsageError("DICOM files need pydicom, which is missing", None, remedy) from error
    return pydicom


def _slices(path: Path) -> list[tuple[Path, Any]]:
    """Files and headers of one series in the order of space."""
    files = [path]
    if path.is_dir():
        files = sorted(
            p for p in path.iterdir() if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR"
        )
        files = [p for p in files if p.stat().st_size == 0 or sniff(p) == "dicom"]
    found = []
    for file in files:
        if file.stat().st_size == 0:
            raise DataError("empty file", file, "copy it again from its source")
        try:
            found.append((file, _parsed(file, pixels=False)))
        except (UserError, MemoryError):
            raise
        except Exception as error:  # pydicom raises many kinds for a damaged file
            raise DataError(
                f"cannot be read as DICOM ({type(error).__name__})", file, "copy it again"
            ) from error
    if not found:
        raise DataError("holds no DICOM file", path)
    _one_series([header for _, header in found], path)
    if len(found) == 1:
        return found
    return _sorted(found, path)


def _parsed(file: Path, *, pixels: bool) -> Any:
    """One file's elements. Mapped, since a read beyond the end would else allocate what a length claims."""
    pydicom = _pydicom()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        content.seek(_PREAMBLE)
        meta = pydicom.filereader.read_dataset(content, False, True, stop_when=lambda tag, *_: tag.group > 2)
        if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
            raise DataError(
                "its header is compressed (deflated)", file, "convert it with dcm2niix or gdcmconv"
            )
        content.seek(0)
        return pydicom.dcmread(content, stop_before_pixels=not pixels)


def _one_series(headers: list[Any], path: Path) -> None:
    series = {str(h.get("SeriesInstanceUID", "")) for h in headers}
    shapes = {(int(h.get("Rows", 0)), int(h.get("Columns", 0))) for h in headers}
    if len(series) > 1:
        raise DataError(f"holds {len(series)} DICOM series", path, "one folder per series")
    if len(shapes) > 1:
        raise DataError(
            f"slices differ in size: {sorted(shapes)[:4]}", path, "remove scouts and derived images"
        )
    if any(int(h.get("NumberOfFrames", 1) or 1) > 1 for h in headers):
        raise DataError(
            "is a multi-frame DICOM file", path, "convert it to NIfTI first, for example with dcm2niix"
        )
    if any(int(h.get("SamplesPerPixel", 1)) > 1 for h in headers):
        raise DataError("is a colour DICOM image", path, "export it as PNG or TIFF")


def _sorted(found: list[tuple[Path, Any]], path: Path) -> list[tuple[Path, Any]]:
    """By position along the slice normal: file names and instance numbers lie, positions rarely do."""
    try:
        normal = _normal(found[0][1])
        depths = [float(np.dot(normal, np.array(h.ImagePositionPatient, float))) for _, h in found]
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            "slices have no position in space", path, "convert the series to NIfTI first"
        ) from error
    order = np.argsort(depths, kind="stable")
    gaps = np.diff(np.array(depths)[order])
    step = float(np.median(gaps))
    if step <= 1e-4 or (gaps < 0.01 * step).any():
        raise DataError(
            "several slices lie at the same position (time points?)", path, "one folder per volume"
        )
    if np.abs(gaps - step).max() > max(0.05 * step, 0.02):
        fact = f"a slice is missing: neighbours lie {gaps.max():.2f} mm apart where {step:.2f} mm is usual"
        raise DataError(fact, path, "copy the series again, or convert it to NIfTI")
    return [found[i] for i in order]


def _normal(header: Any) -> np.ndarray:
    orientation = np.array(header.ImageOrientationPatient, float)
    return np.cross(orientation[:3], orientation[3:])


def _described(slices: list[tuple[Path, Any]], path: Path, limits: Limits) -> Header:
    first, last = slices[0][1], slices[-1][1]
    rows, columns = int(first.get("Rows", 0)), int(first.get("Columns", 0))
    shape = (rows, columns) if len(slices) == 1 else (len(slices), rows, columns)
    guard_size(shape, path, limits, flat=len(shape) == 2)
    spacing = first.get("PixelSpacing", first.get("ImagerPixelSpacing", (1.0, 1.0)))
    row_mm, column_mm = (float(v) for v in spacing)
    affine = None
    if "ImagePositionPatient" in first and "ImageOrientationPatient" in first:
        affine = _TO_RAS @ _lps_affine(first, last, len(slices), row_mm, column_mm)
    bits, signed = int(first.get("BitsAllocated", 16)), int(first.get("PixelRepresentation", 0))
    header = Header("dicom", shape, (1.0,) * len(shape), None, 1, f"{'' if signed else 'u'}int{bits}")
    return placed(header, affine, (1.0, row_mm, column_mm)[-len(shape) :], path, limits)


def _lps_affine(first: Any, last: Any, count: int, row_mm: float, column_mm: float) -> np.ndarray:
    orientation = np.array(first.ImageOrientationPatient, float)
    origin = np.array(first.ImagePositionPatient, float)
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * column_mm
    affine[:3, 1] = orientation[3:] * row_mm
    thickness = float(first.get("SliceThickness", 1.0) or 1.0)
    end = np.array(last.ImagePositionPatient, float)
    affine[:3, 2] = (end - origin) / (count - 1) if count > 1 else _normal(first) * thickness
    affine[:3, 3] = origin
    return affine


def _pixels(file: Path) -> np.ndarray:
    """One slice with its own rescaling (PET changes it from slice to slice)."""
    try:
        data = _parsed(file, pixels=True)
        stored = data.pixel_array
    except (UserError, MemoryError):
        raise
    except Exception as error:
        text = str(error)
        if any(word in text for word in ("less than", "expected", "Unexpected end", "end of file")):
            raise DataError("ends early", file, "copy it again from its source") from error
        raise DataError(
            f"its pixels cannot be decoded ({type(error).__name__}: {text[:120]})",
            file,
            "convert the series to NIfTI first, for example with dcm2niix",
        ) from error
    slope, intercept = float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0)
    scaled: np.ndarray = (stored * slope + intercept).astype(np.float32)
    return scaled
