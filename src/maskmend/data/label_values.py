"""What the values in label files mean: classes, or the trace of a wrong export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from maskmend.data.findings import Finding
from maskmend.errors import UsageError

_MANY = 16  # more undeclared values than this in one file are an export fault, not classes
_LISTED = 8


def named_classes(labels: Mapping[str, int], source: object) -> tuple[dict[str, int], int | None]:
    """Declared classes sorted by value, background first, and the value of a class called "ignore".

    Args:
        labels: class name to file value. A background that is left out is 0; without any class nothing is added.
        source: of the declaration, for messages.

    Raises:
        UsageError: two classes of one value, a value that no label file can have, or another background than 0.
    """
    values = dict(labels)
    unlabelled = values.pop("ignore", None)
    twice = {v for v in values.values() if list(values.values()).count(v) > 1}
    if twice:
        raise UsageError(f"two classes have the value {min(twice)}", source, "one value per class")
    if values and min(values.values()) < 0:
        raise UsageError(f"a class has the negative value {min(values.values())}", source)
    if values and max(values.values()) >= 2**31:
        raise UsageError(f"a class has the value {max(values.values())}", source, "use small numbers")
    _refuse_other_background(values, source)
    if values and 0 not in values.values():
        values["background"] = 0
    return dict(sorted(values.items(), key=lambda item: item[1])), unlabelled


def _refuse_other_background(values: Mapping[str, int], source: object) -> None:
    """Else the class with the lowest value would be learnt as background, or the masks' own background as a class."""
    name = next((name for name in values if name.lower() == "background"), "")
    value = values.get(name, 0)
    if value == 0:
        return
    classes = {name: 0} | {other: was or value for other, was in values.items() if other != name}
    act = f"with 0 and {value} exchanged" if 0 in values.values() else f"with 0 in place of {value}"
    remedy = f"save the masks {act} and say labels: {_pairs(classes)}"
    raise UsageError(f"the background has the value {value}; in masks it must be 0", source, remedy)


def count_values(label: np.ndarray) -> dict[int, int]:
    """File value to voxel count of an integer label (*S)."""
    flat = label.ravel()
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    if low >= 0 and high < 1 << 16:
        counts = np.bincount(flat)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(flat, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def judge_values(counts: Mapping[int, int], labels: Mapping[str, int], ignore: int | None) -> Finding | None:
    """The fault in one label file's values, if any; the caller adds case and file.

    Args:
        counts: file value to voxel count.
        labels: the declared classes, empty when they are not known.
        ignore: the value that means "not annotated".
    """
    known = {*labels.values(), ignore}
    strange = {value: count for value, count in counts.items() if value not in known}
    if not strange:
        return None
    if len(strange) > _MANY and _looks_interpolated(counts):
        text = f"{len(counts)} values: saved as JPEG or resized with interpolation?"
        remedy = "export the label again as PNG or NIfTI; resize labels with nearest neighbour only"
        return Finding(None, "error", 19, text, remedy)
    if min(strange) < 0:
        return Finding(
            None,
            "error",
            20,
            f"negative label values: {_listing(strange)}",
            "store labels as integers from 0; a negative value would wrap around to another class",
        )
    if labels:
        return _undeclared(strange, labels)
    return None


def judge_undeclared(all_counts: Sequence[Mapping[int, int]], ignore: int | None) -> Finding | None:
    """The 255 of a data set with undeclared classes: foreground, a class or "ignore" is not guessed.

    Args:
        all_counts: file value to voxel count, one entry per label file.
        ignore: the value that means "not annotated", None when it is not declared.
    """
    values = sorted({value for counts in all_counts for value in counts} - {ignore})
    if 255 not in values or values == list(range(256)):
        return None
    files = sum(255 in counts for counts in all_counts)
    if set(values) <= {0, 255}:
        remedy = (
            'say in maskmend.json what 255 means: {"labels": {"foreground": 255}} or {"ignore": 255}; '
            "most commands also take data.labels={foreground: 255} or data.ignore=255"
        )
        text = f"{files} of {len(all_counts)} labels hold the values 0 and 255"
        return Finding(None, "error", 18, text, remedy)
    classes = {"background": 0, **{f"class_{value}": value for value in values if value > 0}}
    text = f"labels hold the values {', '.join(map(str, values[:_LISTED]))}; 255 may be a class or 'ignore'"
    remedy = (
        'say which in maskmend.json: {"ignore": 255}, or all classes under "labels"; most commands also take '
        f"data.ignore=255 or data.labels={_pairs(classes)}"
    )
    return Finding(None, "error", 18, text, remedy)


def infer_classes(all_counts: Sequence[Mapping[int, int]], ignore: int | None) -> dict[str, int]:
    """Class names for the values that occur: background is 0, others are called by their value."""
    values = sorted({value for counts in all_counts for value in counts if value > 0 and value != ignore})
    return {"background": 0} | {f"class_{value}": value for value in values}


def _undeclared(strange: Mapping[int, int], labels: Mapping[str, int]) -> Finding:
    if set(strange) == {255} and set(labels.values()) <= {0, 1}:
        return Finding(
            None,
            "error",
            18,
            f"holds 255 ({strange[255]} voxels), declared are {_pairs(labels)}",
            "if 255 is the foreground: data.labels={background: 0, foreground: 255}",
        )
    mapping = _pairs({**labels, **{f"class_{value}": value for value in sorted(strange)[:_LISTED]}})
    return Finding(
        None,
        "error",
        17,
        f"values outside the declared classes: {_listing(strange)}; declared are {_pairs(labels)}",
        f"declare them: data.labels={mapping}",
    )


def _looks_interpolated(counts: Mapping[int, int]) -> bool:
    """Interpolation leaves few voxels on many values; organs number their classes but fill them."""
    ranked = Counter(counts).most_common()
    rest = sum(count for _, count in ranked[4:])
    return rest < 0.5 * sum(counts.values())


def _listing(counts: Mapping[int, int]) -> str:
    shown = [f"{value} ({counts[value]} voxels)" for value in sorted(counts)[:_LISTED]]
    return ", ".join(shown) + (f" and {len(counts) - _LISTED} more" if len(counts) > _LISTED else "")


def _pairs(labels: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in labels.items()) + "}"
