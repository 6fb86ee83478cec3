"""Small pictures of one case, fast: outlines and heat on a grey image by array operations, thousands an hour.

`draw` makes figures of any kind with a plotting library; a page with 2,000 cases needs each picture in
milliseconds. The colours are the same.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from maskmend.boxes import bounding_box
from maskmend.draw import ESTIMATE, GIVEN, TRUTH, heat_colours

CLASS_COLOURS = (GIVEN, TRUTH, ESTIMATE, "#FF7AC8", "#FFE14D", "#FF5A4D")
GROUND = 24  # grey level around an image that does not fill its tile
_MARGIN = 0.18
_LEAST_MARGIN = 6
_WHOLE = 0.7  # a crop above this share of both sides shows nothing closer
_INSET = 0.28

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Section:
    """One plane through a case, ready to be drawn.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        aspect: height of a pixel divided by its width.
        masks: name to (H, W) integers.
        heat: (H, W) in [0, 1].
        place: (row, column) to mark, None for nowhere.
        name: of the plane.
    """

    image: np.ndarray
    aspect: float = 1.0
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    heat: np.ndarray | None = None
    place: tuple[int, int] | None = None
    name: str = ""


@dataclass(frozen=True)
class Shades:
    """Numbers as grey levels: black up to `low`, white from `high` on."""

    low: float
    high: float

    @classmethod
    def of(cls, image: np.ndarray) -> Shades:
        """For an image (C, *S) of any range: cut at its 0.5th and 99.5th percentile."""
        sample = image[:, ..., :: max(1, image.size // 500_000)] if image.size > 1_000_000 else image
        finite = sample[np.isfinite(sample)]
        return cls(*np.percentile(finite, (0.5, 99.5)).tolist()) if finite.size else cls(0.0, 1.0)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """uint8, of any shape; NaN counts as 0."""
        scale = 255 / max(self.high - self.low, 1e-9)
        return np.clip((np.nan_to_num(numbers) - self.low) * scale, 0, 255).astype(np.uint8)


def pictured(image: np.ndarray) -> tuple[np.ndarray, Shades]:
    """What is shown of (C, *S): three channels as colour (*S, 3), else the first as (*S); and in which shades."""
    shown = image if len(image) == 3 else image[:1]
    return np.moveaxis(shown, 0, -1) if len(shown) == 3 else shown[0], Shades.of(shown)


def displayed(image: np.ndarray) -> np.ndarray:
    """(C, *S) of any range to uint8: colour (*S, 3) of three channels, else the first in grey (*S)."""
    shown, shades = pictured(image)
    return shades(shown)


def sections(
    image: np.ndarray,
    masks: Mapping[str, np.ndarray],
    heat: np.ndarray | None,
    place: Sequence[int],
    spacing_mm: Sequence[float],
    affine: np.ndarray | None = None,
    shades: Shades | None = None,
) -> list[Section]:
    """The planes to look at: an image itself, or the three planes of a volume through one voxel.

    Args:
        image: (*S) or (*S, 3) uint8, from `displayed`; any numbers with `shades`.
        masks: name to (*S) integers.
        heat: (*S) in [0, 1].
        place: array index through which the planes go.
        spacing_mm: voxel size in array order.
        affine: (4, 4) to RAS; with it volumes are shown upright, the patient's right on the left.
        shades: in which the planes are shown, so that of a volume only these are converted.
    """
    if len(spacing_mm) == 2:
        aspect = spacing_mm[0] / spacing_mm[1]
        planes = [Section(image, aspect, masks, heat, (int(place[0]), int(place[1])))]
    else:
        planes = [_plane(axis, image, masks, heat, place, spacing_mm, affine) for axis in range(3)]
    return [replace(one, image=shades(one.image)) for one in planes] if shades else planes


def _plane(
    axis: int, image: np.ndarray, masks: Mapping[str, np.ndarray], heat: np.ndarray | None,
    place: Sequence[int], spacing_mm: Sequence[float], affine: np.ndarray | None,
) -> Section:  # fmt: skip
    rows, columns = (a for a in range(3) if a != axis)
    turned, flips, name = _upright(axis, affine)

    def cut(array: np.ndarray) -> np.ndarray:
        flat = np.take(array, int(place[axis]), axis)
        flat = flat.swapaxes(0, 1) if turned else flat
        return flat[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]

    if turned:
        rows, columns = columns, rows
    at = [int(place[a]) for a in (rows, columns)]
    sizes = [image.shape[a] for a in (rows, columns)]
    marked = tuple(n - 1 - i if flip else i for i, n, flip in zip(at, sizes, flips, strict=True))
    return Section(
        cut(image), spacing_mm[rows] / spacing_mm[columns], {key: cut(mask) for key, mask in masks.items()},
        None if heat is None else cut(heat), (marked[0], marked[1]), name,
    )  # fmt: skip


def _upright(axis: int, affine: np.ndarray | None) -> tuple[bool, tuple[bool, bool], str]:
    """Whether rows and columns change places, which of them are reversed, and the plane's name."""
    if affine is None:
        return False, (False, False), f"across axis {axis}"
    turn = affine[:3, :3][:, ::-1]  # columns in array order
    world = [int(np.abs(turn[:, a]).argmax()) for a in range(3)]
    if sorted(world) != [0, 1, 2]:
        return False, (False, False), f"across axis {axis}"
    rows, columns = (a for a in range(3) if a != axis)
    turned = world[rows] < world[columns]
    if turned:
        rows, columns = columns, rows
    # Rows run down and columns to the right: towards P, I and L.
    flips = (bool(turn[world[rows], rows] > 0), bool(turn[world[columns], columns] > 0))
    return turned, flips, ("sagittal", "coronal", "axial")[world[axis]]


def region(section: Section, *, near: float = 0.2) -> Box:
    """(top, bottom, left, right) around all that is drawn or doubted (above `near`), square in mm.

    The whole image where that is little more.
    """
    height, width = section.image.shape[:2]
    drawn = np.zeros((height, width), bool)
    for mask in section.masks.values():
        drawn |= mask > 0
    if section.heat is not None:
        drawn |= section.heat > near
    if not drawn.any():
        return 0, height, 0, width
    rows, columns = bounding_box(drawn)
    tall, wide = (one.stop - one.start for one in (rows, columns))
    side = max(tall * section.aspect, wide)
    side += 2 * max(_MARGIN * side, _LEAST_MARGIN)
    high, broad = side / section.aspect, side
    if high > _WHOLE * height and broad > _WHOLE * width:
        return 0, height, 0, width
    top, bottom = _span((rows.start + rows.stop) / 2, high, height)
    left, right = _span((columns.start + columns.stop) / 2, broad, width)
    return top, bottom, left, right


def _span(middle: float, size: float, limit: int) -> tuple[int, int]:
    """A span of about `size` around `middle` that stays within (0, limit)."""
    size = min(size, limit)
    start = min(max(middle - size / 2, 0), limit - size)
    return int(start), int(np.ceil(start + size))


def tile(
    section: Section,
    box: Box,
    size: int,
    *,
    mask: str = "",
    heat: bool = False,
    colours: Mapping[int, str] | None = None,
    numbers: Mapping[int, int] | None = None,
    inset: bool = False,
    caption: str = "",
    ground: np.ndarray | None = None,
) -> np.ndarray:
    """One square picture, (size, size, 3) uint8.

    Args:
        section: what to draw.
        box: the part of it, from `region`.
        size: in pixels.
        mask: whose outline is drawn.
        heat: lay the heat map over the image.
        colours: label value to colour of its outline; others are drawn in the first one.
        numbers: label value to a number written on the class, so that colour alone does not tell classes.
        inset: show in a corner where the part lies, if it is a small one.
        caption: a few words in another corner.
        ground: of `ground_of` the same, for several tiles that share it.
    """
    top, bottom, left, right = box
    inner, scale = _fitted(section, box, size)
    part = (slice(top, bottom), slice(left, right))
    picture = (ground_of(section, box, size) if ground is None else ground).astype(np.float32)
    if heat and section.heat is not None:
        _lay_heat(picture, section.heat[part], inner)
    if mask in section.masks:
        label = _sampled(section.masks[mask][part], inner)
        _draw_outlines(picture, label, colours or {}, size)
        picture = _numbered(picture, label, numbers or {})
    canvas = np.full((size, size, 3), GROUND, np.uint8)
    y, x = (size - inner[1]) // 2, (size - inner[0]) // 2
    canvas[y : y + inner[1], x : x + inner[0]] = np.clip(picture, 0, 255)
    if section.place is not None:
        row, column = section.place
        _mark(canvas, y + (row - top + 0.5) * section.aspect * scale, x + (column - left + 0.5) * scale)
    if inset:
        _draw_inset(canvas, section, box, size)
    return _captioned(canvas, caption) if caption else canvas


def ground_of(section: Section, box: Box, size: int) -> np.ndarray:
    """What a tile lies on: the part of the image, (h, w, 3) uint8 with the longer side of `size` pixels."""
    top, bottom, left, right = box
    return _rgb_of(_resized(section.image[top:bottom, left:right], _fitted(section, box, size)[0]))


def _fitted(section: Section, box: Box, size: int) -> tuple[tuple[int, int], float]:
    """(width, height) of a part of the image within a tile, and pixels of the tile for one across."""
    top, bottom, left, right = box
    height, width = (bottom - top) * section.aspect, right - left
    scale = size / max(height, width)
    return (max(1, round(width * scale)), max(1, round(height * scale))), scale


@lru_cache(maxsize=8)
def empty_tile(size: int, caption: str) -> np.ndarray:
    """A tile that says why it shows nothing, (size, size, 3) uint8."""
    return _captioned(np.full((size, size, 3), GROUND, np.uint8), caption)


def _captioned(canvas: np.ndarray, caption: str) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(canvas)
    font = ImageFont.load_default(size=max(10, len(canvas) // 17))
    place = (5, len(canvas) - 4)
    ImageDraw.Draw(picture).text(
        place, caption, fill="white", font=font, anchor="ls", stroke_width=1, stroke_fill="black"
    )
    return np.asarray(picture)


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A grey or colour picture at (width, height) of `size`."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize(size, Image.Resampling.BICUBIC))


def _sampled(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label at (width, height) of `size`: the value of the nearest pixel."""
    rows = ((np.arange(size[1]) + 0.5) * label.shape[0] / size[1]).astype(int)
    columns = ((np.arange(size[0]) + 0.5) * label.shape[1] / size[0]).astype(int)
    return label[rows[:, None], columns]


def _rgb_of(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)


def _lay_heat(picture: np.ndarray, heat: np.ndarray, size: tuple[int, int]) -> None:
    levels = (255 * np.clip(np.nan_to_num(heat), 0, 1)).astype(np.uint8)
    colours, opaque = _palette()
    shown = _resized(levels, size)
    at = np.nonzero(shown)  # most of a map is zero, which covers nothing
    found = shown[at]
    picture[at] += (colours[found] - picture[at]) * opaque[found]


@cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Colour (256, 3) in 0 ... 255 and opacity (256, 1) of each level of a heat map."""
    table = heat_colours(np.arange(256) / 255).astype(np.float32)
    return 255 * table[:, :3], table[:, 3:]


def _draw_outlines(picture: np.ndarray, label: np.ndarray, colours: Mapping[int, str], size: int) -> None:
    """Lines of one or two pixels just inside each class, with a dark rim so that they show on bright tissue."""
    from scipy.ndimage import binary_dilation, binary_erosion

    drawn = label > 0
    if not drawn.any():
        return
    around = bounding_box(drawn, 1)
    picture, label = picture[around], label[around]
    rim = np.zeros(label.shape, bool)
    lines = []
    for number, value in enumerate(int(v) for v in np.unique(label) if v > 0):
        inside = label == value
        line = inside & ~binary_erosion(inside, iterations=1 + size // 110, border_value=1)
        lines.append((line, colours.get(value, CLASS_COLOURS[number % len(CLASS_COLOURS)])))
        rim |= line
    rim = binary_dilation(rim, np.ones((3, 3))) & ~rim
    picture[rim] *= 0.45
    for line, colour in lines:
        picture[line] = _rgb(colour)


def _numbered(picture: np.ndarray, label: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """The picture with each class's number on its widest place; classes too small to hold one have none."""
    from PIL import Image, ImageDraw, ImageFont
    from scipy.ndimage import distance_transform_edt

    if not numbers:
        return picture
    canvas = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(11, label.shape[1] // 13))
    for value, number in numbers.items():
        inside = label == value
        if np.count_nonzero(inside) < 60:
            continue
        box = bounding_box(inside)
        depth = distance_transform_edt(np.pad(inside[box], 1))[1:-1, 1:-1]
        place = np.unravel_index(int(depth.argmax()), depth.shape)
        row, column = (int(at) + axis.start for at, axis in zip(place, box, strict=True))
        style: dict[str, Any] = {
            "fill": "white",
            "font": font,
            "anchor": "mm",
            "stroke_width": 1,
            "stroke_fill": "black",
        }
        pen.text((column, row), str(number), **style)
    return np.asarray(canvas)


def _mark(canvas: np.ndarray, row: float, column: float) -> None:
    """White ticks at the left and upper edge that point to a place."""
    size, length = len(canvas), max(4, len(canvas) // 28)
    r, c = (int(np.clip(v, 1, size - 2)) for v in (row, column))
    canvas[r - 1 : r + 2, : length + 1] = 0
    canvas[: length + 1, c - 1 : c + 2] = 0
    canvas[r, :length] = 255
    canvas[:length, c] = 255


def _draw_inset(canvas: np.ndarray, section: Section, box: Box, size: int) -> None:
    height, width = section.image.shape[:2]
    top, bottom, left, right = box
    if (bottom - top) * (right - left) > 0.35 * height * width:
        return
    scale = _INSET * size / max(height * section.aspect, width)
    inner = (max(2, round(width * scale)), max(2, round(height * section.aspect * scale)))
    small = _rgb_of(_resized(section.image, inner)).copy()
    r0, r1 = (min(inner[1] - 1, int(v * section.aspect * scale)) for v in (top, bottom))
    c0, c1 = (min(inner[0] - 1, int(v * scale)) for v in (left, right))
    small[[r0, r1], c0 : c1 + 1] = small[r0 : r1 + 1, [c0, c1]] = (255, 225, 77)
    framed = np.pad(small, ((1, 1), (1, 1), (0, 0)), constant_values=200)
    canvas[-framed.shape[0] :, -framed.shape[1] :] = framed


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def mosaic(rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Tiles of one size in rows, (H, W, 3) uint8."""
    size, across = len(rows[0][0]), max(map(len, rows))
    step = size + gap
    canvas = np.full((len(rows) * step - gap, across * step - gap, 3), GROUND, np.uint8)
    for i, row in enumerate(rows):
        for j, one in enumerate(row):
            canvas[i * step : i * step + size, j * step : j * step + size] = one
    return canvas


def to_jpeg(picture: np.ndarray, most: int | None = None) -> bytes:
    """JPEG with full colour resolution (outlines are thin), in at most `most` bytes where that can be."""
    from PIL import Image

    data = b""
    for quality in (88, 80, 70, 58, 45, 32):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0)
        data = buffer.getvalue()
        if most is None or len(data) <= most:
            break
    return data
