"""The fingerprint of a checked data set: figures for people (table, JSON) and a sheet of pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmend.data.case import Dataset
from maskmend.data.findings import CaseFacts, CheckResult

if TYPE_CHECKING:
    from rich.table import Table


_TYPICAL = (
    "low",
    "mean",
    "std",
    "high",
)  # of Intensity; the median over cases is robust


def summarise(dataset: Dataset | None, facts: Sequence[CaseFacts]) -> dict[str, Any]:
    """Sizes, spacings, intensities, class volumes and empty masks as plain JSON values.

    Volumes are in mm^3 (mm^2 in 2-D, voxels where no spacing is known) over the labels of all cases.
    """
    read = [one for one in facts if one.shape is not None]
    return {
        "cases": len(facts),
        "train": sum(one.split != "test" for one in facts),
        "test": sum(one.split == "test" for one in facts),
        "labelled": sum("" in one.counts for one in facts),
        "raters": sorted({name for one in facts for name in one.counts if name}),
        "ndim": sorted({len(one.shape) for one in read if one.shape}),
        "shape": _axes([one.shape for one in read if one.shape]),
        "spacing_mm": _axes([one.spacing_mm for one in read if one.spacing_mm]),
        "channels": _channels(dataset, facts),
        "classes": _classes(dataset, facts),
        "in_mm": bool(read) and all(one.in_mm for one in read),
        "empty_labels": sum(_is_empty(one, dataset) for one in facts if "" in one.counts),
    }


def _axes(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Smallest, median and largest per axis; of the most frequent number of axes."""
    if not rows:
        return {}
    ndim = Counter(len(row) for row in rows).most_common(1)[0][0]
    table = np.array([row for row in rows if len(row) == ndim], float)
    named = {"min": table.min(0), "median": np.median(table, 0), "max": table.max(0)}
    return {name: [round(float(value), 6) for value in values] for name, values in named.items()}


def _channels(dataset: Dataset | None, facts: Sequence[CaseFacts]) -> list[dict[str, Any]]:
    count = max((len(one.intensity) for one in facts), default=0)
    names = tuple(dataset.channels) if dataset else ()
    result = []
    for channel in range(count):
        rows = [one.intensity[channel] for one in facts if len(one.intensity) > channel]
        name = names[channel] if channel < len(names) else f"channel_{channel}"
        result.append(
            {
                "name": name,
                "minimum": min(row.minimum for row in rows),
                "maximum": max(row.maximum for row in rows),
                **{key: float(np.median([getattr(row, key) for row in rows])) for key in _TYPICAL},
            }
        )
    return result


def _classes(dataset: Dataset | None, facts: Sequence[CaseFacts]) -> list[dict[str, Any]]:
    labels = dict(dataset.labels) if dataset else {}
    labelled = [one for one in facts if "" in one.counts]
    total = sum(sum(one.counts[""].values()) for one in labelled)
    result = []
    for name, value in labels.items():
        present = [one for one in labelled if value in one.counts[""]]
        volumes = [one.counts[""][value] * float(np.prod(one.spacing_mm or 1.0)) for one in present]
        voxels = sum(one.counts[""][value] for one in present)
        result.append(
            {
                "name": name,
                "value": value,
                "cases": len(present),
                "share": voxels / total if total else 0.0,
                "volume_median": float(np.median(volumes)) if volumes else 0.0,
                "volume_min": min(volumes, default=0.0),
                "volume_max": max(volumes, default=0.0),
            }
        )
    return result


def _is_empty(one: CaseFacts, dataset: Dataset | None) -> bool:
    ignore = dataset.ignore if dataset else None
    return not any(value != ignore and value > 0 for value in one.counts[""])


def summary_table(figures: dict[str, Any]) -> Table:
    """The fingerprint as a two-column table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="fingerprint", title_justify="left", show_header=False)
    for name, text in _lines(figures):
        table.add_row(Text(name), Text(text))
    return table


def _lines(figures: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "cases", f"{figures['cases']}: {figures['train']} train, {figures['test']} test"
    yield "labels", f"{figures['labelled']} given, {figures['empty_labels']} empty"
    if figures["raters"]:
        yield "raters", ", ".join(figures["raters"])
    for key, title in (("shape", "size"), ("spacing_mm", "spacing (mm)" if figures["in_mm"] else "spacing")):
        if spread := figures[key]:
            low, middle, high = (" x ".join(f"{v:g}" for v in spread[k]) for k in ("min", "median", "max"))
            known = (
                "" if key == "shape" or figures["in_mm"] else ", not stated by every file: data.spacing_mm="
            )
            yield title, (middle if low == high else f"{middle} (from {low} to {high})") + known
    for channel in figures["channels"]:
        yield (
            f"intensity {channel['name']}",
            (
                f"{channel['minimum']:.4g} to {channel['maximum']:.4g}, typically {channel['low']:.4g} to "
                f"{channel['high']:.4g}, mean {channel['mean']:.4g}, std {channel['std']:.4g}"
            ),
        )
    unit = ("mm2" if figures["ndim"] == [2] else "mm3") if figures["in_mm"] else "voxels"
    for entry in figures["classes"]:
        yield (
            f"class {entry['name']} = {entry['value']}",
            (
                f"{100 * entry['share']:.3g} % of voxels, in {entry['cases']} labels, median "
                f"{entry['volume_median']:.4g} {unit} "
                f"({entry['volume_min']:.4g} to {entry['volume_max']:.4g})"
            ),
        )


def draw_sheet(result: CheckResult, path: Path, cases: int) -> Path | None:
    """Write a PNG of evenly spaced labelled cases with their contours; None when there is none."""
    from maskmend import draw
    from maskmend.data.atomic import atomic_write
    from maskmend.data.images import read_case, read_label

    broken = {finding.case for finding in result.errors}
    dataset = result.dataset
    sound = [case for case in dataset.cases if case.label and case.id not in broken] if dataset else []
    if not sound or dataset is None:
        return None
    places = np.unique(np.linspace(0, len(sound) - 1, min(cases, len(sound))).round().astype(int))
    panels = []
    for case in (sound[i] for i in places):
        assert case.label is not None
        image, label = read_case(case, dataset)[0], read_label(case.label, spacing_mm=dataset.spacing_mm)[0]
        panels.append((case.id, *_slice(image, label)))
    pixels = draw.sheet(panels)
    atomic_write(path, lambda temporary: temporary.write_bytes(pixels) and None)
    return path


def _slice(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 2-D picture of a case: (C, H, W) and (H, W), of a volume the slice with the most foreground."""
    if label.ndim == 2:
        return image, label
    index = int((label > 0).reshape(len(label), -1).sum(1).argmax())
    return image[:, index], label[index]
