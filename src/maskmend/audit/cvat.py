"""A work list for CVAT: files in order, a manifest, labels, and the masks in its format "Segmentation mask 1.1"."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.audit.files import WorkItem
from maskmend.data.atomic import atomic_write, write_text
from maskmend.data.case import Dataset
from maskmend.data.images import read_header
from maskmend.overlay import CLASS_COLOURS


def write_cvat(folder: Path, items: Sequence[WorkItem], dataset: Dataset) -> list[Path]:
    """Files in order, a manifest of them, labels, and the masks in CVAT's "Segmentation mask 1.1"."""
    images = [item.files.images[0] for item in items]
    manifest = [{"version": "1.1"}, {"type": "images"}, *map(_manifest_entry, images)]
    names = foreground(dataset)
    labels = [{"name": name, "color": class_colour(i), "attributes": []} for i, name in enumerate(names)]
    files = [folder / name for name in ("files.txt", "manifest.jsonl", "labels.json", "annotations.zip")]
    write_text(files[0], "".join(f"{path}\n" for path in images))
    write_text(files[1], "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in manifest))
    write_text(files[2], json.dumps(labels, indent=1, ensure_ascii=False) + "\n")
    atomic_write(files[3], lambda path: _zip_masks(path, items, dataset))
    return files


def _manifest_entry(image: Path) -> dict[str, Any]:
    height, width = read_header(image).geometry.shape
    size = {"width": width, "height": height}
    return {"name": image.stem, "extension": image.suffix, **size, "meta": {"related_images": []}}


def _zip_masks(path: Path, items: Sequence[WorkItem], dataset: Dataset) -> None:
    """Colour masks by class and by object, as Pascal VOC has them, which CVAT reads back as masks."""
    names = foreground(dataset)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{_plain(name)}:{','.join(map(str, _rgb(i)))}::" for i, name in enumerate(names)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", "\n".join(lines) + "\n")
        stems = [item.files.images[0].stem for item in items]
        archive.writestr("ImageSets/Segmentation/default.txt", "\n".join(stems) + "\n")
        for item, stem in zip(items, stems, strict=True):
            label = item.label()
            if label is not None:
                archive.writestr(f"SegmentationClass/{stem}.png", _colour_mask(label, dataset))
                archive.writestr(f"SegmentationObject/{stem}.png", _object_mask(label, dataset))


def _plain(name: str) -> str:
    """A label without the characters that CVAT's label map is cut at."""
    return name.replace(":", "_").replace("\n", " ")


def _colour_mask(label: np.ndarray, dataset: Dataset) -> bytes:
    picture = np.zeros((*label.shape, 3), np.uint8)
    for index, value in enumerate(v for v in dataset.labels.values() if v):
        picture[label == value] = _rgb(index)
    return _png(picture)


def _object_mask(label: np.ndarray, dataset: Dataset) -> bytes:
    """Each connected part of each class in a colour of its own."""
    from scipy.ndimage import label as number

    picture, count = np.zeros((*label.shape, 3), np.uint8), 0
    for value in (v for v in dataset.labels.values() if v):
        parts, found = number(label == value, np.ones((3, 3)))
        for part in range(1, found + 1):
            count += 1
            picture[parts == part] = _voc_colour(count)
    return _png(picture)


def _voc_colour(index: int) -> tuple[int, int, int]:
    """The colour of an index in Pascal VOC: its bits, three by three, from the highest bit down."""
    red = green = blue = 0
    for bit in range(8):
        red |= (index >> 0 & 1) << (7 - bit)
        green |= (index >> 1 & 1) << (7 - bit)
        blue |= (index >> 2 & 1) << (7 - bit)
        index >>= 3
    return red, green, blue


def foreground(dataset: Dataset) -> list[str]:
    """Class names without background, by value."""
    return [name for name, value in dataset.labels.items() if value]


def class_colour(index: int) -> str:
    """The colour of a class, "#rrggbb"."""
    if index < len(CLASS_COLOURS):
        return CLASS_COLOURS[index]
    return "#{:02x}{:02x}{:02x}".format(*_voc_colour(index + 1))


def _rgb(index: int) -> tuple[int, int, int]:
    colour = class_colour(index)
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
