"""Work lists for the programs in which masks are redrawn: CVAT, Label Studio, and anything that reads a CSV.

CVAT and Label Studio edit pictures, so their lists are written for 2-D data in formats they display. Volumes are
redrawn in ITK-SNAP, 3D Slicer or MONAI Label; `worklist.csv` holds the command that opens each case.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskmend import pseudonyms
from maskmend.audit.cvat import write_cvat
from maskmend.audit.figures import worst_first
from maskmend.audit.files import WorkItem, by_id, case_files
from maskmend.audit.label_studio import common_root, write_label_studio
from maskmend.audit.record import CaseRecord
from maskmend.audit.viewers import OpenCommand, open_commands
from maskmend.data.atomic import write_text
from maskmend.data.case import Dataset
from maskmend.data.formats import suffix_of
from maskmend.errors import UsageError

__all__ = ["FOLDER", "OpenCommand", "open_commands", "refuse_hidden", "write_exports"]

FOLDER = "export"
SHOWN_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
"""What browsers display, and so what CVAT and Label Studio do."""

README = """Work lists of an audit, worst cases first.

worklist.csv
  Every case with its priority, kind of error, files and the commands that open it.

monai_datalist.json
  The same as a MONAI data list: monai.data.load_decathlon_datalist("monai_datalist.json", True, "training").

"""

_CVAT = """cvat/
  Create a task with the images of files.txt and with manifest.jsonl, sorting method "predefined": the worst case is the
  first frame. Then Actions > Upload annotations > "Segmentation mask 1.1" with annotations.zip, which holds the
  suggested masks (the given ones where there is no suggestion). labels.json is for the raw view of the labels.
  From a terminal, in this folder:
    xargs -d '\\n' -a cvat/files.txt cvat-cli task create {title} --labels cvat/labels.json \\
      --sorting-method predefined --annotation_path cvat/annotations.zip \\
      --annotation_format 'Segmentation mask 1.1' local cvat/manifest.jsonl

"""

_LABEL_STUDIO = """label_studio/
  Start it with
    LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root} label-studio
  and add a local storage with the folder of the images. Labelling interface: config.xml. Import tasks.json (with the
  masks as polygons to correct; holes in masks are lost) or tasks.csv (images alone).
"""

_SAME_NAMES = (
    "CVAT tells images by their file name, and some of these share one: there is no list for it.\n\n"
)
_VOLUMES = """CVAT and Label Studio do not show volumes or this image format: there is nothing for them here.
Open cases with the commands in worklist.csv.
"""


def refuse_hidden() -> None:
    """Work lists name the real files, or nobody could open them: there are none under pseudonyms.

    Raises:
        UsageError: names are hidden.
    """
    if pseudonyms.active():
        remedy = (
            "leave out --export; for work lists, audit without --phi-safe into a folder that is not passed on"
        )
        raise UsageError("work lists name the real files", "--export, --phi-safe", remedy)


def write_exports(
    out: Path | str, dataset: Dataset, records: Sequence[CaseRecord], *, limit: int | None = None
) -> list[Path]:
    """Write the work lists of an audit into `out/export/`.

    Args:
        out: the audit folder; relative paths in the records refer to it.
        dataset: as found, with its classes named.
        records: of the audit, in any order; the lists are sorted worst first.
        limit: only the worst so many cases.

    Returns:
        The files written.

    Raises:
        UsageError: names are hidden.
    """
    refuse_hidden()
    out = Path(out)
    folder, cases = out / FOLDER, by_id(dataset)
    items = [
        WorkItem(record, case_files(record, out, dataset, cases)) for record in worst_first(records)[:limit]
    ]
    write_text(folder / "worklist.csv", _csv(_work_rows(items)))
    write_text(folder / "monai_datalist.json", _json(_datalist(items, dataset)))
    written = [folder / "worklist.csv", folder / "monai_datalist.json"]
    flat = [item for item in items if _shown(item)]
    text = README if flat else README + _VOLUMES
    if len({item.files.images[0].name for item in flat}) < len(flat):
        text += _SAME_NAMES
    elif flat:
        written += write_cvat(folder / "cvat", flat, dataset)
        text += _CVAT.format(title=shlex.quote(dataset.root.name))
    if flat:
        written += write_label_studio(folder / "label_studio", flat, dataset, _csv)
        text += _LABEL_STUDIO.format(root=shlex.quote(str(common_root(flat))))
    write_text(folder / "README.txt", text)
    return [*written, folder / "README.txt"]


def _shown(item: WorkItem) -> bool:
    return len(item.files.images) == 1 and suffix_of(item.files.images[0]) in SHOWN_SUFFIXES


# ---- for everybody ------------------------------------------------------------------------------------------


def _work_rows(items: Sequence[WorkItem]) -> Iterator[dict[str, Any]]:
    for rank, item in enumerate(items, 1):
        record, files = item.record, item.files
        commands = {one.tool: one.command for one in open_commands(record, files)}
        yield {
            "rank": rank, "case": record.case, "priority": round(record.priority, 4),
            "flawed": round(record.flawed, 4), "quality": round(record.quality, 4), "kind": record.kind,
            "wrong_voxels": round(record.wrong_voxels), "rater": record.rater, "site": record.site,
            "group": record.group,
            "worst_x_y_z": " ".join(str(i) for i in reversed(record.worst)) if record.worst else "",
            "findings": "; ".join(f"{one.check}: {one.text}" for one in record.structure),
            "image": " ".join(map(str, files.images)), "given": files.given or "",
            "suggested": files.suggested or "", "noise_map": files.noise_map or "",
            "itk_snap": commands.get("ITK-SNAP", ""), "slicer": commands.get("3D Slicer", ""),
            "napari": commands.get("napari", ""),
        }  # fmt: skip


def _csv(rows: Iterator[Mapping[str, Any]]) -> str:
    """CSV in which no cell is taken for a formula by a spreadsheet."""
    text, writer = io.StringIO(), None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: _harmless(value) for key, value in row.items()})
    return text.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _datalist(items: Sequence[WorkItem], dataset: Dataset) -> dict[str, Any]:
    entries = []
    for item in items:
        images = [str(path) for path in item.files.images]
        entry: dict[str, Any] = {
            "image": images[0] if len(images) == 1 else images,
            "label": str(item.files.given),
        }
        if item.files.suggested:
            entry["suggested"] = str(item.files.suggested)
        entries.append(entry | {"case": item.record.case, "priority": round(item.record.priority, 4)})
    return {"labels": {str(value): name for name, value in dataset.labels.items()}, "training": entries}
