"""The two JSON files of a data set: `dataset.json` of nnU-Net and the Decathlon, and our `maskmend.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from maskmend import pseudonyms
from maskmend.errors import DataError, UsageError, unknown

SIDE_NAME, DATASET_NAME = "maskmend.json", "dataset.json"
_WHOLE = re.compile(r"-?[0-9]{1,10}")


class SideFile(BaseModel):
    """What a layout cannot say by itself. Every key is optional; paths are relative to the file.

    Args:
        labels: class name to file value, e.g. {"background": 0, "liver": 255}; background is 0, named or not.
        ignore: the file value that means "not annotated".
        channels: channel names in order.
        spacing_mm: true voxel size, slowest axis first, where the files' own is wrong or missing.
        trusted: ids of cases whose label is known to be clean.
        raters: rater name to a folder with that rater's labels, named like the images.
        groups: case id to patient; cases of a patient are never split.
        ignore_masks: case id to a mask whose non-zero voxels are excluded.
        test: ids of the test cases.
        sites: case id to site, for tables by site.
        drawn_by: case id to the rater who drew the given label, for tables by rater.
    """

    model_config = ConfigDict(extra="forbid")
    labels: dict[str, int] | None = None
    ignore: int | None = None
    channels: list[str] | None = None
    spacing_mm: list[float] | None = None
    trusted: list[str] = []
    raters: dict[str, str] = {}
    groups: dict[str, str] = {}
    ignore_masks: dict[str, str] = {}
    test: list[str] = []
    sites: dict[str, str] = {}
    drawn_by: dict[str, str] = {}


def load_side(root: Path) -> SideFile:
    """The side file of a data set; an empty one where there is none.

    Raises:
        UsageError: an unknown key (with the nearest name) or a value of the wrong type.
    """
    path = root / SIDE_NAME
    if not path.is_file():
        return SideFile()
    try:
        side = SideFile(**load_json(path))
        if names := pseudonyms.active():
            cases = (side.trusted, side.groups, side.ignore_masks, side.test, side.sites, side.drawn_by)
            names.know([case for part in cases for case in part])
            names.know(side.groups.values(), "patient")
            names.know(side.sites.values(), "site")
        return side
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise unknown("key", key, SideFile.model_fields, path) from error
        raise UsageError(f"{key}: {first['msg']}, got {_short(first['input'])}", path) from error


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, with the line where it is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode()  # half a character cannot be a name, nor be written
    except json.JSONDecodeError as error:
        raise UsageError(f"line {error.lineno} is no valid JSON: {error.msg}", path) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # not UTF-8, nested too deep, a number of thousands of digits
        raise UsageError("is no valid JSON text", path) from error
    if not isinstance(content, dict):
        raise UsageError("holds no JSON object", path, "it starts with { and ends with }")
    return content


def declared_labels(
    content: Mapping[str, Any], path: Path, *, overridden: bool = False
) -> tuple[dict[str, int], int | None]:
    """Classes and ignore value of a `dataset.json`; both {"liver": 1} and the older {"1": "liver"} are read.

    Args:
        content: of the file.
        path: of it.
        overridden: others say what the values mean, so that regions do no harm.

    Raises:
        DataError: region-based classes (several values under one name), which maskmend does not learn.
    """
    labels: dict[str, int] = {}
    given = content.get("labels") or {}
    if not isinstance(given, dict):
        raise DataError(f'"labels" is {_short(given)}', path, 'e.g. {"background": 0, "liver": 1}')
    for key, value in given.items():
        if isinstance(value, list) and overridden:
            continue
        if isinstance(value, list):
            remedy = f"give one value per class, as the masks have them, in {SIDE_NAME} or data.labels="
            raise DataError(f"the class {key!r} is a region of several values {_short(value)}", path, remedy)
        name, number = (value, key) if isinstance(value, str) and _is_whole(key) else (key, value)
        if not _is_whole(number):
            raise DataError(f"the class {name!r} has the value {_short(number)}, not a whole number", path)
        labels[str(name)] = int(number)
    ignore = labels.pop("ignore", None)
    return labels, ignore


def declared_channels(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Channel names of a `dataset.json` in order of their numbers ("modality" in older files)."""
    found = content.get("channel_names") or content.get("modality") or {}
    if isinstance(found, list):
        return tuple(map(str, found))
    if not isinstance(found, dict) or not all(_is_whole(key) for key in found):
        return ()
    return tuple(str(found[key]) for key in sorted(found, key=int))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | str) and bool(_WHOLE.fullmatch(str(value))) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """A value as it is written, cut where it is long: it may be anything."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
