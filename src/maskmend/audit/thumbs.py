"""One picture per case: image, given outline, suggested outline and noise map, in three planes for volumes.

A picture's name holds a digest of all that it shows, so that a second report draws only what has changed, and two
processes may draw the same pictures at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from maskmend.audit.files import CaseFiles
from maskmend.audit.record import CaseRecord
from maskmend.data.atomic import atomic_write
from maskmend.draw import ESTIMATE, GIVEN
from maskmend.errors import UserError
from maskmend.fanout import Mapper, in_turn
from maskmend.overlay import (
    CLASS_COLOURS,
    Section,
    empty_tile,
    ground_of,
    mosaic,
    pictured,
    region,
    sections,
    tile,
    to_jpeg,
)

FOLDER = "thumbs"
VERSION = 5  # of the drawing; another number redraws all
COLUMNS = ("image", "given outline", "suggested outline", "noise map")
TOTAL_BYTES = 39_000_000
"""Of all pictures together: written as text within a page they take 52 MB of it."""

MOST_BYTES, LEAST_BYTES = 130_000, 9_000
TILES = ((60_000, 232), (30_000, 176), (0, 136))
"""Bytes a picture may take, and the pixels of a tile that then look well."""


@dataclass(frozen=True)
class Thumb:
    """The picture of one case.

    Args:
        path: None where it could not be drawn.
        rows: planes shown, 1 or 3.
        tile: pixels of one of its tiles.
        problem: why there is none.
    """

    path: Path | None
    rows: int = 1
    tile: int = 0
    problem: str = ""


def bytes_per_picture(count: int) -> int:
    """What one of `count` pictures may take, so that together they stay below `TOTAL_BYTES`."""
    return int(np.clip(TOTAL_BYTES // max(count, 1), LEAST_BYTES, MOST_BYTES))


def draw_all(
    records: Sequence[CaseRecord],
    files: Sequence[CaseFiles],
    out: Path,
    classes: Mapping[str, int],
    over: Mapper = in_turn,
) -> Iterator[Thumb]:
    """Draw what is missing and yield a picture for each record, in order; then remove pictures of no record.

    Args:
        records: of the cases.
        files: of each record.
        out: the audit folder.
        classes: name to value, for colours and numbers; 0 is passed over.
        over: spreads the cases; each process holds one in memory.
    """
    most = bytes_per_picture(len(records))
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    used: set[str] = set()
    draw = partial(_draw, folder, dict(classes), most)
    for thumb in over(draw, list(zip(records, files, strict=True))):
        used |= {thumb.path.name} if thumb.path else set()
        yield thumb
    for old in folder.glob("*.jpg"):
        if re.fullmatch(r".*-[0-9a-f]{16}\.jpg", old.name) and old.name not in used:
            old.unlink(missing_ok=True)


def _draw(folder: Path, classes: Mapping[str, int], most: int, pair: tuple[CaseRecord, CaseFiles]) -> Thumb:
    return draw_case(*pair, folder, classes, most)


def draw_case(
    record: CaseRecord, files: CaseFiles, folder: Path, classes: Mapping[str, int], most: int
) -> Thumb:
    """The picture of one case, drawn unless it is there."""
    size = next(pixels for least, pixels in TILES if most >= least)
    path = folder / f"{_slug(record.case)}-{_digest(record, files, classes, most)}.jpg"
    try:
        if not path.is_file():
            picture = to_jpeg(_picture(record, files, classes, size), most)
            atomic_write(path, lambda temporary: temporary.write_bytes(picture))
    except (UserError, OSError, ValueError) as error:
        return Thumb(None, problem=str(error).splitlines()[0])
    return Thumb(path, _rows(path), size)


def _rows(path: Path) -> int:
    """1 for an image, 3 for the planes of a volume: tiles are square, so the shape of the picture says it."""
    from PIL import Image

    with Image.open(path) as picture:
        return max(1, round(picture.height * len(COLUMNS) / picture.width))


def _slug(case: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", case)[:40] or "case"


def _digest(record: CaseRecord, files: CaseFiles, classes: Mapping[str, int], most: int) -> str:
    stamps = []
    for path in files.all:
        try:
            facts = path.stat()
            stamps.append((str(path), facts.st_mtime_ns, facts.st_size))
        except OSError:
            stamps.append((str(path), 0, 0))
    read = (files.channels, files.spacing_mm)
    told = (VERSION, record.case, _place(record), record.shape, read, stamps, sorted(classes.items()), most)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _place(record: CaseRecord) -> tuple[int, ...] | None:
    """Where to look: the worst place, else the middle of the most doubtful part, else of the worst finding."""
    if record.worst is not None:
        return record.worst
    parts = sorted(record.components, key=lambda one: -one.probability * one.voxels)
    if parts and parts[0].probability > 0:
        return parts[0].centre
    findings = sorted(record.structure, key=lambda one: -one.severity)
    return next((one.centre for one in findings if one.centre is not None), None)


def _picture(record: CaseRecord, files: CaseFiles, classes: Mapping[str, int], size: int) -> np.ndarray:
    from maskmend.data.images import read_header, read_image, read_label

    masks = {}
    geometry = None
    for name, path in (("given", files.given), ("suggested", files.suggested)):
        if path is not None and (name == "given" or path.is_file()):
            masks[name], geometry = read_label(path, spacing_mm=files.spacing_mm)
    heat = None
    if files.noise_map is not None and files.noise_map.is_file():
        heat = read_image(files.noise_map)[0][0]
        if np.dtype(read_header(files.noise_map).dtype).kind in "iu":  # stored in integers, 255 stands for 1
            heat = heat / 255
    if files.images:
        image, geometry = read_image(files.images, channels=files.channels, spacing_mm=files.spacing_mm)
    elif geometry is None:
        raise ValueError("neither an image nor a mask")
    else:
        image = np.zeros((1, *geometry.shape), np.float32)
    for name, array in (*masks.items(), ("noise map", heat)):
        if array is not None and array.shape != image.shape[1:]:
            raise ValueError(f"the {name} has shape {array.shape}, the image {image.shape[1:]}")
    place = _place(record) or _middle(heat, *masks.values(), shape=image.shape[1:])
    spacing = record.spacing_mm or geometry.spacing_mm
    shown, shades = pictured(image)
    planes = sections(shown, masks, heat, place, spacing, geometry.affine, shades)
    return mosaic([_row(one, classes, size) for one in planes])


def _middle(*maps: np.ndarray | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Where most of the first map with anything in it lies, axis by axis."""
    for one in maps:
        if one is not None and (there := one > 0).any():
            axes = range(one.ndim)
            sums = [np.count_nonzero(there, axis=tuple(a for a in axes if a != axis)) for axis in axes]
            return tuple(int(total.argmax()) for total in sums)
    return tuple(n // 2 for n in shape)


def _row(section: Section, classes: Mapping[str, int], size: int) -> list[np.ndarray]:
    values = [value for value in classes.values() if value]
    if len(values) > 1:  # colour and number tell the class, the column tells whose outline it is
        given = suggested = {v: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, v in enumerate(values)}
        numbers = {value: i + 1 for i, value in enumerate(values)}
    else:
        given, suggested = dict.fromkeys(values, GIVEN), dict.fromkeys(values, ESTIMATE)
        numbers = {}
    box = region(section)
    drawn = partial(tile, section, box, size, ground=ground_of(section, box, size))
    row = [drawn(inset=True, caption=section.name)]
    for mask, colours, absent in (("given", given, "no mask"), ("suggested", suggested, "no suggestion")):
        if mask in section.masks:
            row.append(drawn(mask=mask, colours=colours, numbers=numbers))
        else:
            row.append(empty_tile(size, absent))
    return [
        *row,
        drawn(heat=True) if section.heat is not None else empty_tile(size, "no map"),
    ]
