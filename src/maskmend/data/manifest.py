"""The CSV layout: one row per case, paths relative to the file."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from maskmend import pseudonyms
from maskmend.data.case import Case
from maskmend.data.dicom import is_series
from maskmend.data.formats import stem_of
from maskmend.data.layouts import Found
from maskmend.errors import DataError, UsageError

COLUMNS = ("id", "image", "label", "trusted", "group", "split", "ignore", "site", "rater")
_NO_FILES = ("trusted", "split", "id", "group", "site", "rater")
_YES, _NO = ("1", "true", "yes", "y"), ("", "0", "false", "no", "n")
_SPLITS = {"": "train", "train": "train", "training": "train", "test": "test", "testing": "test"}


def is_manifest(path: Path) -> bool:
    """Whether a CSV file lists cases: it has an image column."""
    columns = _rows(path)[0]
    return "image" in columns or "image_0" in columns


def find_csv(path: Path) -> Found:
    """The cases of a manifest.

    Columns: image (or image_0, image_1, ... for one file per channel), and where needed id, label,
    rater_NAME, trusted, group, split, ignore, site, rater (who drew the label). Others are passed over, unless
    they look misspelt.

    Raises:
        UsageError: no image column, a misspelt column, or a value that is not understood.
        DataError: a listed file does not exist.
    """
    columns, rows = _rows(path)
    _check_columns(columns, path)
    cases = tuple(_case(row, number, path) for number, row in enumerate(rows, 2) if any(row.values()))
    channels = sorted((c for c in columns if re.fullmatch(r"image_\d+", c)), key=lambda c: int(c[6:]))
    _check_channels(cases, channels, path)
    return Found(cases)


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("is no UTF-8 text", path, "save it as CSV (UTF-8)") from error
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    try:
        columns = [name.strip().lower() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = [{k: (v or "").strip() for k, v in row.items() if isinstance(k, str)} for row in reader]
    except csv.Error as error:
        raise UsageError(
            f"is no table: {error}", f"{path} line {reader.line_num}", "save it as CSV"
        ) from error
    if names := pseudonyms.active():
        for row in rows:
            names.know([value for key, value in row.items() if key == "id"])
            names.know([value for key, value in row.items() if key == "group"], "patient")
            names.know([value for key, value in row.items() if key == "site"], "site")
            files = [value for key, value in row.items() if key not in _NO_FILES and value]
            names.know(map(stem_of, files))
            names.know_written(files)
    return columns, rows


def _check_columns(columns: list[str], path: Path) -> None:
    for column in columns:
        if column in COLUMNS or re.fullmatch(r"image_\d+|rater_.+", column):
            continue
        absent = [name for name in COLUMNS if name not in columns and name != "rater"]  # "rate" is no slip
        if close := difflib.get_close_matches(column, absent, n=1, cutoff=0.8):
            raise UsageError(f"unknown column {column!r}", path, f"did you mean {close[0]!r}?")
    if "image" not in columns and "image_0" not in columns:
        raise UsageError("has no column 'image'", path, f"columns: {','.join(COLUMNS)},rater_NAME")


def _check_channels(cases: tuple[Case, ...], channels: list[str], path: Path) -> None:
    for case in cases:
        if channels and len(case.images) != len(channels):
            fact = f"the case {case.id} has {len(case.images)} of {len(channels)} channel files"
            raise DataError(fact, path)


def _case(row: Mapping[str, str], number: int, path: Path) -> Case:
    where = f"{path} line {number}"
    names = [
        row[key] for key in sorted(row, key=_channel_order) if re.fullmatch(r"image(_\d+)?", key) and row[key]
    ]
    if not names:
        raise DataError("names no image", where)
    images = tuple(_existing(path, name, where) for name in names)
    optional = {key: _existing(path, row[key], where) for key in ("label", "ignore") if row.get(key)}
    raters = {
        key.removeprefix("rater_"): _existing(path, value, where)
        for key, value in row.items()
        if key.startswith("rater_") and value
    }
    return Case(
        row.get("id") or stem_of(images[0]),
        images,
        optional.get("label"),
        raters,
        trusted=_flag(row.get("trusted", ""), where),
        group=row.get("group") or None,
        split=_split(row.get("split", ""), where),
        ignore=optional.get("ignore"),
        site=row.get("site") or None,
        rater=row.get("rater") or None,
    )


def _channel_order(key: str) -> tuple[int, str]:
    match = re.fullmatch(r"image_(\d+)", key)
    return (int(match[1]), key) if match else (-1, key)


def _existing(path: Path, name: str, where: str) -> Path:
    file = path.parent / name
    if not os.path.exists(file):  # False, too, for a name that no file system takes
        raise DataError(f"the file {name} does not exist", where, "paths are relative to the CSV file")
    if file.is_dir() and not is_series(file):
        raise DataError(
            f"the folder {name} holds no DICOM file", where, "name a file, or the folder of a series"
        )
    return file


def _flag(value: str, where: str) -> bool:
    if value.lower() in _YES:
        return True
    if value.lower() in _NO:
        return False
    raise UsageError(f"trusted is {value!r}", where, "1 or 0")


def _split(value: str, where: str) -> str:
    if value.lower() not in _SPLITS:
        raise UsageError(f"split is {value!r}", where, "train or test")
    return _SPLITS[value.lower()]
