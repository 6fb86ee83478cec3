"""Flat images: PNG, JPEG and BMP through Pillow, TIFF (also multi-page, as a volume) through tifffile."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskmend.data.formats import MAX_VOXELS, Header, Limits, guard_size, placed, suffix_of
from maskmend.errors import DataError, UsageError, UserError

_LOW_BITS = {
    "L;2": 85,
    "L;4": 17,
}  # Pillow stretches 2- and 4-bit grey to 0..255; labels need the stored value


_MOST_DEFLATED = 1032  # bytes that deflate can make of one
_MOST_PACKED = 1 << 16  # bytes that any compression of TIFF makes of one
_LEAST_PAGE = 30  # bytes of a page of TIFF: two tags, its size
# Pixels of a JPEG in one byte: a block of 64 takes a bit at least, and may stand for more, coarsely.
_MOST_PIXELS = 2048


def read_header(path: Path, limits: Limits) -> Header:
    """Shape and colours; a raster file knows no millimetres."""
    if _is_tiff(path):
        with _tiff(path) as file:
            return _tiff_header(file, path, limits)[0]
    with _pillow(path) as image:
        return _raster_header(image, path, limits)


def read(path: Path, limits: Limits, *, indices: bool = False) -> tuple[np.ndarray, Header]:
    """All pixels, (C, *S), upright as EXIF says.

    Args:
        indices: keep the index of a palette image (labels) instead of its colours (images).
    """
    if _is_tiff(path):
        return _read_tiff(path, limits, indices)
    from PIL import ImageOps

    with _pillow(path) as image:
        header = _raster_header(image, path, limits)
        if suffix_of(path) == ".png":
            _verify_png(path)
        if suffix_of(path) in (".jpg", ".jpeg"):
            _verify_jpeg(path, *image.size)
        stretch = _LOW_BITS.get(str(image.tile[0][3]) if image.tile else "", 1)
        pixels = np.asarray(_unified(ImageOps.exif_transpose(image), indices))
    if stretch > 1:
        pixels = pixels // stretch
    array = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return array, _as_read(header, array)


def check_writable(path: Path, array: np.ndarray) -> None:
    """Refuse (C, *S) pixels that the format cannot hold: PNG takes flat uint8 or uint16, TIFF anything."""
    suffix = suffix_of(path)
    if _is_tiff(path):
        return
    if array.ndim != 3 or len(array) not in (1, 3):
        raise UsageError(f"cannot hold an array of shape {array.shape}", path, "write .tif or .nii.gz")
    if suffix not in (".png", ".bmp") or array.dtype not in (np.uint8, np.uint16):
        raise UsageError(
            f"{suffix} cannot hold {array.dtype} values unchanged", path, "write .tif or .nii.gz"
        )
    if array.dtype == np.uint16 and (len(array) == 3 or suffix == ".bmp"):
        raise UsageError(f"{suffix} cannot hold these 16-bit values", path, "write .tif or .nii.gz")


def write(path: Path, array: np.ndarray) -> None:
    """Write (C, *S) pixels as they are typed."""
    if _is_tiff(path):
        return _write_tiff(path, array)
    from PIL import Image

    pixels = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, optimize=False)


def _is_tiff(path: Path) -> bool:
    return suffix_of(path) in (".tif", ".tiff")


@contextmanager
def _pillow(path: Path) -> Iterator[Any]:
    """An opened image; Pillow's faults as ours. Its own size check is passed over for `guard_size`."""
    from PIL import Image

    Image.preinit()
    kind = {".png": "PNG", ".bmp": "BMP"}.get(suffix_of(path), "JPEG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF is not the user's concern
            with path.open("rb") as file:
                yield Image.OPEN[kind][0](file, str(path))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _damaged(error, path) from error


def _damaged(error: Exception, path: Path) -> DataError:
    text = str(error)
    if any(
        word in text for word in ("truncated", "too short", "not enough", "No more data", "unexpected end")
    ):
        return DataError(f"ends early ({text})", path, "copy it again from its source")
    if "checksum" in text or "CRC" in text or "broken" in text:
        return DataError(f"fails its checksum ({text})", path, "copy it again from its source")
    return DataError(f"cannot be decoded ({text})", path, "export it again")


def _verify_png(path: Path) -> None:
    """Pillow stops once it has all pixels, before the last checksum: each part's own is checked here."""
    data, start, kind, packed = path.read_bytes(), 8, b"", 0
    while kind != b"IEND":
        if start + 12 > len(data):
            raise DataError("ends early", path, "copy it again from its source")
        size, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 8 + size
        if end + 4 > len(data):
            raise DataError("ends early", path, "copy it again from its source")
        if zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise DataError(f"fails its checksum in the part {kind!r}", path, "copy it again from its source")
        packed += size if kind == b"IDAT" else 0
        start = end + 4
    width, height, depth = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), data[24]
    if packed * _MOST_DEFLATED < width * height * depth // 8:  # Pillow would fill in the rest, for minutes
        raise _too_short(path, packed, width, height)


def _verify_jpeg(path: Path, width: int, height: int) -> None:
    """Pillow makes room for all pixels before it finds that there are none."""
    size = path.stat().st_size
    if size * _MOST_PIXELS < width * height:
        raise _too_short(path, size, width, height)


def _too_short(path: Path, size: int, width: int, height: int) -> DataError:
    fact = f"ends early: {size:,} bytes cannot hold {width} x {height} pixels"
    return DataError(fact, path, "export it again")


def _raster_header(image: Any, path: Path, limits: Limits) -> Header:
    width, height = image.size
    guard_size((height, width), path, limits, flat=True)
    from PIL import Image

    turned = Image.Image.getexif(image).get(0x0112, 1) in (5, 6, 7, 8)  # the PNG class would decode all
    shape = (width, height) if turned else (height, width)
    colour = image.mode in ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "P", "PA")
    dtype = {"I;16": "uint16", "I": "int32", "F": "float32"}.get(image.mode, "uint8")
    header = Header("raster", shape, (1.0, 1.0), None, 3 if colour else 1, dtype, image.format == "JPEG")
    return placed(header, None, (1.0, 1.0), path, limits)


def _unified(image: Any, indices: bool) -> Any:
    """Grey, RGB or palette index: alpha and other colour spaces go."""
    if image.mode in ("P", "PA"):
        return image if indices and image.mode == "P" else image.convert("P" if indices else "RGB")
    if image.mode == "LA":
        return image.convert("L")
    if image.mode in ("RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "RGBa"):
        return image.convert("RGB")
    return image


def _as_read(header: Header, array: np.ndarray) -> Header:
    """What the pixels say in the end: alpha is gone, palettes are resolved, EXIF may have come late."""
    return replace(header, shape=array.shape[1:], channels=len(array))


@contextmanager
def _tiff(path: Path) -> Iterator[Any]:
    import logging

    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its complaints come back as our errors
    try:
        _walk_pages(path)
        with tifffile.TiffFile(path) as file:
            _complete(file, path)
            yield file
    except UserError:
        raise
    except Exception as error:  # tifffile raises many kinds for a damaged file
        raise _damaged(error, path) from error


def _walk_pages(path: Path) -> None:
    """Follow the chain of pages: tifffile would go round a circle for ever."""
    size = path.stat().st_size
    seen: set[int] = set()
    with path.open("rb") as file:
        head = file.read(16)
        order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
        big = int.from_bytes(head[2:4], order) == 43
        # Bytes of an offset, of a page's count, of a tag.
        wide, counted, tag = (8, 8, 20) if big else (4, 2, 12)
        at = int.from_bytes(head[8:16] if big else head[4:8], order)
        while 0 < at < size:
            if at in seen or (len(seen) + 1) * _LEAST_PAGE > size:
                raise DataError("has pages that point in a circle", path, "export it again")
            seen.add(at)
            file.seek(at)
            file.seek(at + counted + tag * int.from_bytes(file.read(counted), order))
            at = int.from_bytes(file.read(wide), order)


def _complete(file: Any, path: Path) -> None:
    """A strip that is not there, or beyond the file's end, would be read as zeros; a million of them take a minute."""
    size = path.stat().st_size
    if not file.series:
        raise DataError("holds no image", path, "export it again")
    for page in file.series[0].pages:
        if page is None:
            continue
        there, claimed = len(page.dataoffsets), prod(page.chunked)
        if there < claimed:
            raise DataError(
                f"ends early: it holds {there:,} of {claimed:,} strips or tiles", path, "export it again"
            )
        key = page.keyframe
        bits = key.bitspersample if isinstance(key.bitspersample, int) else min(key.bitspersample)
        packed = 1 if int(key.compression) == 1 else _MOST_PACKED
        if size * packed < prod(page.shape) * bits // 8:
            raise _too_short(path, size, *page.shape[1::-1])
        ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if ends and max(ends) > size:
            raise DataError(
                f"ends early: {size:,} of {max(ends):,} bytes", path, "copy it again from its source"
            )


def _tiff_header(file: Any, path: Path, limits: Limits) -> tuple[Header, list[int], list[int]]:
    """The header, the stored axes that are channels and those that are space."""
    series = file.series[0]
    page = series.keyframe
    shape, axes = tuple(series.shape), str(series.axes)
    colour = [i for i, a in enumerate(axes) if a in "SC" and shape[i] > 1]
    space = [i for i, a in enumerate(axes) if i not in colour and (shape[i] > 1 or a in "YX")]
    guard_size(shape, path, limits, flat=len(space) == 2)
    if len(space) not in (2, 3) or len(colour) > 1:
        size = " x ".join(f"{a}={n}" for a, n in zip(axes, shape, strict=True))
        raise DataError(
            f"has the axes {size} where 2 or 3 are expected", path, "split time points or positions"
        )
    spatial = tuple(shape[i] for i in space)
    channels = shape[colour[0]] if colour else 3 if page.photometric == 3 else 1
    lossy = int(page.compression) in (6, 7, 34892, 33003, 33005)  # the JPEG family
    ones = (1.0,) * len(spatial)
    header = Header("tiff", spatial, ones, None, channels, np.dtype(series.dtype).name, lossy)
    return placed(header, None, ones, path, limits), colour, space


def _read_tiff(path: Path, limits: Limits, indices: bool) -> tuple[np.ndarray, Header]:
    with _tiff(path) as file:
        header, colour, space = _tiff_header(file, path, limits)
        pixels = _tiff_pixels(file, path)
        if not pixels.size or pixels.size % prod(header.shape):
            raise DataError(f"holds {pixels.size:,} pixels where its header claims {header.shape}", path)
        array = np.transpose(pixels, [*colour, *space, *_others(pixels.ndim, colour + space)])
        array = array.reshape(-1, *header.shape)
        page = file.series[0].keyframe
        if page.photometric == 3 and page.colormap is not None and not indices:
            array = np.asarray(page.colormap)[:, array[0]] >> 8
        if colour and page.photometric == 2 and len(array) == 4:
            array = array[:3]  # alpha
    if array.dtype.kind not in "biuf":
        raise DataError(f"holds {array.dtype} pixels, which are no intensities", path, "export real numbers")
    return array, _as_read(header, array)


def _others(ndim: int, known: list[int]) -> list[int]:
    return [i for i in range(ndim) if i not in known]


def _tiff_pixels(file: Any, path: Path) -> np.ndarray:
    """The pixels; Pillow steps in for compressions that tifffile leaves to an extra package."""
    try:
        pixels: np.ndarray = file.series[0].asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        from PIL import Image, ImageSequence

        with Image.open(path) as image:
            pages = [np.array(page) for page in ImageSequence.Iterator(image)]
        pixels = np.stack(pages).reshape(file.series[0].shape)
    return pixels


def _write_tiff(path: Path, array: np.ndarray) -> None:
    import tifffile

    grey = len(array) == 1
    axes = ("" if grey else "C") + ("YX" if array.ndim == 3 else "ZYX")
    tifffile.imwrite(
        path,
        array[0] if grey else array,
        photometric="minisblack",
        compression="zlib",
        metadata={"axes": axes},
        bigtiff=array.nbytes > MAX_VOXELS * 4,
        software=False,
    )
