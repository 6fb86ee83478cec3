"""Which files are images: suffixes, what a file's first bytes say it is, and how large it claims to be."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np

from maskmend.data.case import Geometry
from maskmend.errors import DataError, ResourceError

MAX_VOXELS = 2**31 // 4  # 2 GiB as float32
MAX_PIXELS = 178_956_970  # 2-D images: where Pillow, too, assumes a decompression bomb

_FORMATS = {  # suffix -> (format, what its first bytes must be)
    ".nii.gz": ("nifti", "gzip"),
    ".nii": ("nifti", "nifti"),
    ".nrrd": ("itk", "nrrd"),
    ".mha": ("itk", "mha"),
    ".png": ("raster", "png"),
    ".jpg": ("raster", "jpeg"),
    ".jpeg": ("raster", "jpeg"),
    ".bmp": ("raster", "bmp"),
    ".tif": ("tiff", "tiff"),
    ".tiff": ("tiff", "tiff"),
    ".dcm": ("dicom", "dicom"),
}
IMAGE_SUFFIXES = tuple(_FORMATS)
LABEL_SUFFIXES = tuple(s for s in IMAGE_SUFFIXES if s not in (".dcm", ".jpg", ".jpeg"))

_NAMES = {
    "gzip": "gzip-compressed data",
    "nifti": "an uncompressed NIfTI volume",
    "nrrd": "an NRRD volume",
    "mha": "a MetaImage volume",
    "png": "a PNG image",
    "jpeg": "a JPEG image",
    "bmp": "a BMP image",
    "tiff": "a TIFF image",
    "dicom": "a DICOM file",
    "gif": "a GIF image",
    "webp": "a WebP image",
    "npy": "a NumPy array",
    "hdf5": "an HDF5 file",
    "zip": "a zip archive",
    "pdf": "a PDF document",
    "lfs": "a Git LFS pointer, not the file itself (run `git lfs pull`)",
    "html": "an HTML page (a download that failed?)",
    "text": "a text file",
}
_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"NRRD000", "nrrd"),
    (b"GIF8", "gif"),
    (b"\x93NUMPY", "npy"),
    (b"\x89HDF", "hdf5"),
    (b"PK\x03\x04", "zip"),
    (b"%PDF", "pdf"),
    (b"version https://git-lfs", "lfs"),
    (b"BM", "bmp"),
)


@dataclass(frozen=True)
class Header:
    """What a file says about itself before any pixel is read.

    Args:
        format: "nifti", "itk", "raster", "tiff" or "dicom".
        shape: spatial shape, slowest axis first: (H, W) or (D, H, W).
        spacing_mm: voxel size in the order of `shape`; 1.0 where it is not known.
        affine: (4, 4) voxel (x, y, z) to RAS millimetres, or None.
        channels: number of channels, 3 for RGB.
        dtype: NumPy name of the stored type.
        lossy: the compression changes values (JPEG), so it cannot hold labels.
    """

    format: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    affine: np.ndarray | None = field(default=None, compare=False)
    channels: int = 1
    dtype: str = "uint8"
    lossy: bool = False

    @property
    def geometry(self) -> Geometry:
        """Where the voxels lie."""
        return Geometry(self.shape, self.spacing_mm, self.affine)


@dataclass(frozen=True)
class Limits:
    """What the caller allows or knows: size guard, channels of a single file, spacing override."""

    max_voxels: int = MAX_VOXELS
    channels: int | None = None
    spacing_mm: tuple[float, ...] | None = None


def suffix_of(path: Path | str) -> str:
    """The known image suffix of a file name in lower case (".nii.gz", ".png"), or ""."""
    name = (path if isinstance(path, Path) else Path(path)).name.lower()
    if not name.endswith(IMAGE_SUFFIXES):
        return ""
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix) and name != suffix), "")


def stem_of(path: Path | str) -> str:
    """The file name without its image suffix: "a.b.nii.gz" gives "a.b", a DICOM folder gives its name."""
    name, suffix = Path(path).name, suffix_of(path)
    return name[: len(name) - len(suffix)] if suffix else name


def format_of(path: Path) -> str:
    """The reader for a path: a format of `Header`, with "dicom" for folders.

    Raises:
        DataError: the file is missing, empty, of no known format, or not what its name says.
    """
    if path.is_dir():
        return "dicom"
    if not path.is_file():
        raise DataError("no such file", path)
    if path.stat().st_size == 0:
        raise DataError("empty file", path, "copy it again from its source")
    suffix = suffix_of(path)
    kind = sniff(path)
    if not suffix:
        _refuse(path, kind, "maskmend reads " + ", ".join(IMAGE_SUFFIXES))
    name, expected = _FORMATS[suffix]
    if kind != expected:
        _refuse(path, kind, "give it the suffix of what it is, or export it again")
    return name


def sniff(path: Path) -> str:
    """What the first bytes of a file say it is: a key such as "png"; "unknown" when nothing fits."""
    with path.open("rb") as file:
        head = file.read(1024)
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] == b"n+2":
        return "nifti"
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return _sniff_text(head)


def _sniff_text(head: bytes) -> str:
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "html"
    if start.startswith((b"objecttype", b"ndims", b"comment")) and b"ndims" in start:
        return "mha"
    printable = all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
    return "text" if printable else "unknown"


def _refuse(path: Path, kind: str, remedy: str) -> NoReturn:
    suffix = suffix_of(path)
    named = f"is named {suffix} but" if suffix else "is not an image maskmend reads:"
    raise DataError(f"{named} holds {_NAMES.get(kind, 'no known format')}", path, remedy)


def guard_size(shape: tuple[int, ...], path: Path, limits: Limits, *, flat: bool = False) -> None:
    """Refuse a claimed size before anything is allocated.

    Args:
        shape: every stored axis, channels included.
        flat: the file is one 2-D image, which has the lower default limit of 179 megapixels.

    Raises:
        ResourceError: more voxels than the limit. DataError: an axis below 1.
    """
    if not shape or min(shape) < 1:
        raise DataError(f"the header claims the impossible shape {shape}", path, "export it again")
    limit = limits.max_voxels
    if flat and limit == MAX_VOXELS:
        limit = MAX_PIXELS
    voxels = prod(shape)
    if voxels > limit:
        size = " x ".join(map(str, shape))
        hint = "cut it into tiles, or " if flat else ""
        raise ResourceError(
            f"claims {size} = {voxels:,} voxels ({voxels * 4 / 2**30:.1f} GiB in memory);"
            f" the limit is {limit:,}",
            path,
            f"{hint}if the size is right, allow it with data.max_voxels={voxels}",
        )


class ExtraAxes(DataError):
    """More axes than an image has; `axes` are those of the file, (x, y, z, ...)."""

    axes: tuple[int, ...] = ()


def spatial_axes(dims: tuple[int, ...], path: Path, limits: Limits) -> tuple[tuple[int, ...], int]:
    """Split stored axes (x, y, z, ..., slowest last) into the spatial ones and the number of channels.

    Trailing axes of length 1 are dropped, so (x, y, 1) is a 2-D image and (x, y, z, 1) a volume. A last axis
    counts as channels only when the caller says how many there are.

    Raises:
        ExtraAxes: a fourth axis that nobody called channels. DataError: fewer than two axes.
    """
    axes = _squeezed(dims)
    if limits.channels and limits.channels > 1 and len(axes) >= 4 and axes[-1] == limits.channels:
        core = _squeezed(axes[:-1])
        if len(core) <= 3:
            return core, limits.channels
    if len(axes) > 3:
        size = " x ".join(map(str, axes))
        fault = ExtraAxes(
            f"has {len(axes)} axes ({size}) where 2 or 3 are expected",
            path,
            f"if the last axis is channels, name all {axes[-1]} in data.channels=[...]; if time, split it",
        )
        fault.axes = axes
        raise fault
    if len(axes) < 2:
        raise DataError(f"has {len(axes)} axes, an image has 2 or 3", path)
    return axes, 1


def _squeezed(dims: tuple[int, ...]) -> tuple[int, ...]:
    while len(dims) > 2 and dims[-1] == 1:
        dims = dims[:-1]
    return dims


def placed(
    header: Header, affine: np.ndarray | None, spacing_mm: tuple[float, ...], path: Path, limits: Limits
) -> Header:
    """The header with a checked affine and spacing; `limits.spacing_mm` overrides what the file says.

    Args:
        affine: (4, 4) voxel (x, y, z) to RAS mm as stored, or None when the format has none.
        spacing_mm: as stored, order of `shape`.

    Raises:
        DataError: a zero, singular or non-finite affine, or a spacing that is not positive, without override.
    """
    ndim = len(header.shape)
    if limits.spacing_mm is not None:
        if len(limits.spacing_mm) != ndim:
            raise DataError(
                f"data.spacing_mm has {len(limits.spacing_mm)} values, the image {ndim} axes", path
            )
        spacing_mm, affine = limits.spacing_mm, _respaced(affine, limits.spacing_mm)
    problem = _fault(affine, spacing_mm, ndim)
    if problem:
        ask = ", ".join(["1.0"] * ndim)
        raise DataError(
            problem, path, f"give the true voxel size in mm, slowest axis first: data.spacing_mm=[{ask}]"
        )
    if affine is not None:
        affine = np.array(affine, float)
        norms = np.linalg.norm(affine[:3, :3], axis=0)
        spacing_mm = tuple(float(n) for n in norms[:ndim][::-1])
        if ndim == 2 and not norms[2] > 0:  # a 2-D file need not fill the third column; writers need it
            affine[:3, 2] = np.cross(affine[:3, 0] / norms[0], affine[:3, 1] / norms[1])
    return replace(header, spacing_mm=tuple(map(float, spacing_mm)), affine=affine)


def _respaced(affine: np.ndarray | None, spacing_mm: tuple[float, ...]) -> np.ndarray | None:
    """The affine with other voxel sizes; upright axes when the stored ones are unusable."""
    if affine is None:
        return None
    ndim = len(spacing_mm)
    sizes = np.array((*spacing_mm[::-1], 1.0)[:3])
    out = np.eye(4)
    if _fault(affine, (1.0,) * ndim, ndim):
        out[:3, :3] = np.diag(sizes)
        return out
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if ndim == 2:
        sizes[2] = norms[2]
    out[:3, :3] = affine[:3, :3] / np.where(norms > 0, norms, 1.0) * sizes
    out[:3, 3] = affine[:3, 3]
    return out


def _fault(affine: np.ndarray | None, spacing_mm: tuple[float, ...], ndim: int) -> str | None:
    """What is wrong with a stored geometry, or None."""
    if affine is None:
        if not all(np.isfinite(s) and s > 0 for s in spacing_mm):
            return f"the voxel spacing {tuple(spacing_mm)} is not positive"
        return None
    if not np.isfinite(affine).all():
        return "the affine holds NaN or Inf"
    columns = affine[:3, :ndim]
    norms = np.linalg.norm(columns, axis=0)
    if (norms == 0).any():
        return "the affine or voxel spacing is zero"
    if np.linalg.matrix_rank(columns / norms, tol=1e-4) < ndim:
        return "the affine is singular: two axes point the same way"
    return None


def inflate(data: bytes, path: Path, limit: int, *, wrapper: int = 31) -> bytes:
    """Decompress gzip data to its end and verify the checksum, never growing beyond `limit` bytes.

    Readers of image formats stop once they have the pixels they want, and so never notice a cut or flipped
    byte near the end; some fill the rest with zeros.

    Args:
        wrapper: zlib's number for what surrounds the stream: 31 for gzip, 15 for zlib.

    Raises:
        DataError: the stream ends early, or its checksum does not match.
        ResourceError: it grows beyond `limit`.
    """
    parts: list[bytes] = []
    size = 0
    while data:
        stream = zlib.decompressobj(wrapper)
        try:
            part = stream.decompress(data, limit - size + 1)
        except zlib.error as error:
            fact = f"fails its checksum or is damaged inside ({error})"
            raise DataError(fact, path, "copy it again from its source") from error
        size += len(part)
        if size > limit:
            fact = f"decompresses to more than the {limit:,} bytes its header claims"
            raise ResourceError(fact, path, "this may be a decompression bomb; export it again")
        if not stream.eof:
            raise DataError(f"ends early, after {size:,} bytes", path, "copy it again from its source")
        parts.append(part)
        data = stream.unused_data.lstrip(b"\0")
        if data and not data.startswith(b"\x1f\x8b"):
            raise DataError("fails its checksum: foreign bytes follow its end", path, "copy it again")
    return parts[0] if len(parts) == 1 else b"".join(parts)
