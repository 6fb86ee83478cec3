"""The folder layouts: two folders, nnU-Net raw, and the Medical Segmentation Decathlon."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maskmend import pseudonyms
from maskmend.data.case import Case
from maskmend.data.dicom import is_series
from maskmend.data.formats import stem_of
from maskmend.data.listing import by_channel, image_files
from maskmend.data.sidefile import DATASET_NAME, declared_channels, declared_labels, load_json
from maskmend.errors import DataError

_IMAGES = ("images", "image", "imgs", "img")
_LABELS = ("labels", "label", "masks", "mask")
_LISTED = 10


@dataclass(frozen=True)
class Found:
    """What a layout says, before `maskmend.json` and the caller have their say.

    Args:
        orphans: label files that have no image.
    """

    cases: tuple[Case, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    ignore: int | None = None
    orphans: tuple[str, ...] = ()


def detect(root: Path, need_labels: bool) -> str | None:
    """The layout of a folder, or None when it looks like no data set."""
    if (root / DATASET_NAME).is_file():
        return _detect_json(root)
    if (root / "imagesTr").is_dir():
        return "nnunet"
    if any(_folder(part, (*_IMAGES, *_LABELS)) for part in _parts(root)) or list(root.glob("labels_*/")):
        return "folders"
    if not need_labels and (image_files(root, series=True) or is_series(root)):
        return "folders"
    return None


def _detect_json(root: Path) -> str | None:
    """nnU-Net v1 lists images without the channel number that their files have, the Decathlon as they are."""
    listed = load_json(root / DATASET_NAME).get("training")
    if isinstance(listed, list) and listed:
        image = listed[0].get("image") if isinstance(listed[0], dict) else None
        numbered = isinstance(image, str) and list((root / "imagesTr").glob(f"{stem_of(image)}_0000.*"))
        return "nnunet" if numbered else "msd"
    if (root / "imagesTr").is_dir():
        return "nnunet"
    return "folders" if _folder(root, _IMAGES) else "nnunet"


def _parts(root: Path) -> list[Path]:
    """The folder itself, or its train and test folders."""
    if _folder(root, _IMAGES) or _folder(root, _LABELS):
        return [root]
    return [root / name for name in ("train", "test") if (root / name).is_dir()] or [root]


def _folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


# ---- two folders --------------------------------------------------------------------------------


def find_folders(root: Path, channels: int | None, *, overridden: bool = False) -> Found:
    """`images/` and `labels/` with equal stems; each `labels_NAME/` is a rater. Or images alone."""
    parts = [
        _two_folders(part, "test" if part.name == "test" and part != root else "train", channels)
        for part in _parts(root)
    ]
    cases = tuple(case for part in parts for case in part.cases)
    orphans = tuple(orphan for part in parts for orphan in part.orphans)
    declared: dict[str, Any] = {}
    if (root / DATASET_NAME).is_file():
        content = load_json(root / DATASET_NAME)
        labels, ignore = declared_labels(content, root / DATASET_NAME, overridden=overridden)
        declared = {"labels": labels, "ignore": ignore, "channels": declared_channels(content)}
    return Found(cases, orphans=orphans, **declared)


def _two_folders(root: Path, split: str, channels: int | None) -> Found:
    folder, labels = _folder(root, _IMAGES), _folder(root, _LABELS)
    if folder is None and labels is None and is_series(root):
        return Found((Case(root.name, (root,), split=split),))
    raters = (
        {} if labels is None and folder is None else rater_folders(root, labels.name if labels else "labels")
    )
    if folder is None and (labels or raters or list(root.glob("labels_*/"))):
        return _labels_alone(labels, raters or rater_folders(root, "labels"), split)
    return _paired(folder or root, labels, raters, split, channels)


def rater_folders(root: Path, labels: str) -> dict[str, Path]:
    """Rater name to folder: `labels_ann/` holds the labels of the rater "ann"."""
    found = sorted(path for path in root.glob(f"{labels}_*") if path.is_dir())
    return {path.name.removeprefix(f"{labels}_"): path for path in found}


def _paired(
    images: Path, labels: Path | None, raters: Mapping[str, Path], split: str, channels: int | None
) -> Found:
    given = image_files(labels) if labels else {}
    rated = {name: image_files(folder) for name, folder in raters.items()}
    stems = given.keys() | {stem for files in rated.values() for stem in files}
    grouped = by_channel(image_files(images, series=True), stems, channels, images)
    cases = tuple(
        Case(key, files, given.get(key), {n: r[key] for n, r in rated.items() if key in r}, split=split)
        for key, files in sorted(grouped.items())
    )
    orphans = [
        str(path) for files in (given, *rated.values()) for key, path in files.items() if key not in grouped
    ]
    return Found(cases, orphans=tuple(orphans))


def _labels_alone(labels: Path | None, raters: Mapping[str, Path], split: str) -> Found:
    """Labels without any image: enough to compare raters, and what `find_cases` refuses for training."""
    given = image_files(labels) if labels else {}
    rated = {name: image_files(folder) for name, folder in raters.items()}
    stems = sorted(given.keys() | {stem for files in rated.values() for stem in files})
    return Found(
        tuple(
            Case(key, (), given.get(key), {n: r[key] for n, r in rated.items() if key in r}, split=split)
            for key in stems
        )
    )


# ---- nnU-Net ------------------------------------------------------------------------------------


def find_nnunet(root: Path, channels: int | None, *, overridden: bool = False) -> Found:
    """nnU-Net raw: imagesTr/ID_0000.EXT, labelsTr/ID.EXT, the same with Ts for test cases, dataset.json."""
    path = root / DATASET_NAME
    content = load_json(path) if path.is_file() else {}
    labels, ignore = declared_labels(content, path, overridden=overridden)
    names = declared_channels(content)
    parts = [_nnunet_part(root, "Tr", "train", channels or len(names) or None)]
    if (root / "imagesTs").is_dir():
        parts.append(_nnunet_part(root, "Ts", "test", channels or len(names) or None))
    cases = tuple(case for part in parts for case in part.cases)
    orphans = tuple(orphan for part in parts for orphan in part.orphans)
    return Found(cases, labels, names, ignore, orphans)


def _nnunet_part(root: Path, ending: str, split: str, channels: int | None) -> Found:
    images, labels = root / f"images{ending}", root / f"labels{ending}"
    if not images.is_dir():
        raise DataError(f"the folder images{ending} is missing", root)
    found = labels if labels.is_dir() else None
    return _paired(images, found, rater_folders(root, labels.name), split, channels)


# ---- Decathlon ----------------------------------------------------------------------------------


def find_msd(root: Path, channels: int | None, *, overridden: bool = False) -> Found:
    """The Decathlon: dataset.json lists training pairs and test images."""
    path = root / DATASET_NAME
    content = load_json(path)
    labels, ignore = declared_labels(content, path, overridden=overridden)
    listed = {key: content.get(key) or [] for key in ("training", "test")}
    for key, entries in listed.items():
        if not isinstance(entries, list):
            raise DataError(f'"{key}" is no list of images', path)
    training = [_msd_case(root, entry, "train") for entry in listed["training"]]
    test = [_msd_case(root, entry, "test") for entry in listed["test"]]
    absent = [str(file) for case in training + test for file in case.images if not os.path.exists(file)]
    if absent:
        raise DataError(f"{len(absent)} images are listed but missing: {', '.join(absent[:_LISTED])}", path)
    cases = tuple(
        replace(case, label=case.label if case.label and os.path.isfile(case.label) else None)
        for case in training + test
    )
    return Found(cases, labels, declared_channels(content), ignore)


def _msd_case(root: Path, entry: Any, split: str) -> Case:
    pair = entry if isinstance(entry, dict) else {"image": entry}
    image, label = (_inside(root, pair.get(key)) for key in ("image", "label"))
    if image is None:
        raise DataError(f"the entry {entry!r} names no image", root / DATASET_NAME)
    if names := pseudonyms.active():
        names.know(stem_of(path) for path in (image, label) if path)
    return Case(stem_of(image), (image,), label, split=split)


def _inside(root: Path, name: Any) -> Path | None:
    """A listed path, which must stay within the data set: a downloaded list may not point anywhere else."""
    if not isinstance(name, str):
        return None
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"lists a file outside the data set: {name}", root / DATASET_NAME)
    return path
