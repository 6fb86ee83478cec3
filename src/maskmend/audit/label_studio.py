"""A work list for Label Studio: tasks with the masks as polygons to correct, and the interface to do it in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from maskmend.audit.cvat import class_colour, foreground
from maskmend.audit.files import WorkItem
from maskmend.data.atomic import write_text
from maskmend.data.case import Dataset

TOLERANCE = 0.4  # pixels by which a polygon may leave the mask's outline
LEAST_POINTS = 3
LOCAL_FILES = "/data/local-files/?d="


def write_label_studio(
    folder: Path,
    items: Sequence[WorkItem],
    dataset: Dataset,
    to_csv: Callable[[Iterator[Mapping[str, Any]]], str],
) -> list[Path]:
    """Tasks with the masks as polygons to correct, the same as a plain CSV, and the labelling interface."""
    root = common_root(items)
    tasks = [_task(item, root, dataset) for item in items]
    files = [folder / name for name in ("tasks.json", "tasks.csv", "config.xml")]
    write_text(files[0], json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    write_text(files[1], to_csv(iter([task["data"] for task in tasks])))
    write_text(files[2], _config(foreground(dataset)))
    return files


def common_root(items: Sequence[WorkItem]) -> Path:
    """The folder that holds all images: what Label Studio may serve."""
    folders = [item.files.images[0].parent for item in items]
    root = folders[0]
    while not all(folder.is_relative_to(root) for folder in folders):
        root = root.parent
    return root.parent if root.parent != root else root  # the storage must lie below the document root


def _task(item: WorkItem, root: Path, dataset: Dataset) -> dict[str, Any]:
    record, image = item.record, item.files.images[0]
    data = {
        "image": LOCAL_FILES + quote(image.relative_to(root).as_posix()), "case": record.case,
        "priority": round(record.priority, 4), "kind": record.kind, "quality": round(record.quality, 4),
        "rater": record.rater, "site": record.site,
        "title": f"{record.case}: {record.kind}, estimated Dice {record.quality:.2f}",
    }  # fmt: skip
    label = item.label()
    if label is None:
        return {"data": data}
    result = list(_polygons(label, dataset))
    return {
        "data": data,
        "predictions": [{"model_version": "maskmend", "score": record.quality, "result": result}],
    }


def _polygons(label: np.ndarray, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Outer outlines of each connected part, in percent of the image; polygons have no holes."""
    from scipy.ndimage import binary_fill_holes
    from skimage.measure import approximate_polygon, find_contours

    height, width = label.shape
    for name, value in dataset.labels.items():
        if not value:
            continue
        solid = np.pad(binary_fill_holes(label == value), 1)
        for outline in find_contours(solid, 0.5):  # type: ignore[no-untyped-call]
            points = approximate_polygon(outline - 0.5, TOLERANCE)[:-1]  # type: ignore[no-untyped-call]
            if len(points) < LEAST_POINTS:
                continue
            shares = np.clip(100 * points[:, ::-1] / (width, height), 0, 100)
            yield {
                "from_name": "label", "to_name": "image", "type": "polygonlabels", "original_width": width,
                "original_height": height, "image_rotation": 0,
                "value": {"points": np.round(shares, 3).tolist(), "polygonlabels": [name], "closed": True},
            }  # fmt: skip


def _config(names: Sequence[str]) -> str:
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(class_colour(i))}/>\n"
        for i, name in enumerate(names)
    )
    return (
        "<View>\n"
        '  <Header value="$title"/>\n'
        '  <Image name="image" value="$image" zoom="true" zoomControl="true" brightnessControl="true"/>\n'
        f'  <PolygonLabels name="label" toName="image" strokeWidth="2" opacity="0.3">\n{labels}  </PolygonLabels>\n'
        "</View>\n"
    )
