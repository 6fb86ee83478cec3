"""Every layout is found without configuration; splits keep patients together and do not drift."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmend.data.case import Case
from maskmend.data.dataset import find_cases, folds, infer_labels, split


def touch(root: Path, *names: str, value: int = 1) -> None:
    """Small label-like PNGs (a file of any other suffix is only a name)."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(np.array([[0, value]], np.uint8)).save(path)
        else:
            path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("folder", "count", "raters"),
    [
        ("bubil_cells_crowd_vs_expert", 270, 10),
        ("hc18_fetal_head_2d", 500, 0),
        ("msd_hippocampus_2d", 260, 0),
        ("msd_hippocampus_3d", 260, 0),
        ("tiny_unit_test/binary_2d", 16, 0),
        ("tiny_unit_test/multirater_2d", 12, 10),
        ("tiny_unit_test/volume_3d", 6, 0),
    ],
)
def test_real_data_need_no_configuration(real_data: Path, folder: str, count: int, raters: int) -> None:
    dataset = find_cases(real_data / folder)
    assert (dataset.layout, len(dataset.cases)) == ("folders", count)
    for case in dataset.cases:
        assert case.label is not None
        assert case.label.name == case.images[0].name
        assert len(case.raters) == raters
        assert all(path.parent.name == f"labels_{name}" for name, path in case.raters.items())


def test_labels_without_images(real_data: Path) -> None:
    dataset = find_cases(real_data / "lidc_nodule_masks_4raters_noimages", need_images=False)
    assert len(dataset.cases) == 894
    assert {len(case.raters) for case in dataset.cases} == {4}


def test_real_classes_are_inferred(real_data: Path) -> None:
    dataset = infer_labels(find_cases(real_data / "tiny_unit_test/volume_3d"))
    assert dict(dataset.labels) == {"background": 0, "class_1": 1, "class_2": 2}


def test_nnunet(tmp_path: Path) -> None:
    for case in ("la_1", "la_2"):
        touch(tmp_path, *(f"imagesTr/{case}_{n:04d}.nii.gz" for n in (0, 1)), f"labelsTr/{case}.nii.gz")
    touch(tmp_path, "imagesTs/la_9_0000.nii.gz", "imagesTs/la_9_0001.nii.gz", "imagesTr/._la_1_0000.nii.gz")
    content = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "edema": 1, "ignore": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for path in (tmp_path, tmp_path / "dataset.json"):
        dataset = find_cases(path)
        assert dataset.layout == "nnunet"
        assert [case.id for case in dataset.train] == ["la_1", "la_2"]
        assert [case.id for case in dataset.test] == ["la_9"]
        assert [p.name for p in dataset["la_1"].images] == ["la_1_0000.nii.gz", "la_1_0001.nii.gz"]
        assert (dataset.channels, dict(dataset.labels)) == (("T1", "FLAIR"), {"background": 0, "edema": 1})
        assert dataset.ignore == 2


def test_nnunet_of_the_first_version_is_not_taken_for_the_decathlon(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/la_1_0000.nii.gz", "labelsTr/la_1.nii.gz")
    entry = {"image": "./imagesTr/la_1.nii.gz", "label": "./labelsTr/la_1.nii.gz"}
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}, "training": [entry]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert find_cases(tmp_path).layout == "nnunet"


def test_decathlon(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/b_10.nii.gz", "labelsTr/b_10.nii.gz", "imagesTs/b_7.nii.gz")
    content = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
        "training": [{"image": "./imagesTr/b_10.nii.gz", "label": "./labelsTr/b_10.nii.gz"}],
        "test": ["./imagesTs/b_7.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = find_cases(tmp_path)
    assert (dataset.layout, dataset.channels) == ("msd", ("FLAIR", "T1w"))
    assert dict(dataset.labels) == {"background": 0, "edema": 1, "tumour": 2}
    assert (dataset["b_10"].label, dataset["b_7"].split) == (tmp_path / "labelsTr/b_10.nii.gz", "test")


def test_two_folders_with_channels_and_other_suffixes(tmp_path: Path) -> None:
    touch(tmp_path, "images/a_0000.tif", "images/a_0001.tif", "images/b_0000.tif", "images/b_0001.tif")
    touch(tmp_path, "labels/a.png", "labels/b.png", "images/notes.txt")
    dataset = find_cases(tmp_path)
    assert [(c.id, len(c.images)) for c in dataset.cases] == [("a", 2), ("b", 2)]


def test_numbers_in_names_are_no_channels_when_labels_have_them(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{part}/frame_{n:04d}.png" for part in ("images", "labels") for n in range(3)))
    assert [case.id for case in find_cases(tmp_path).cases] == ["frame_0000", "frame_0001", "frame_0002"]


def test_train_and_test_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.png", "train/masks/a.png", "test/images/b.png")
    dataset = find_cases(tmp_path)
    assert [(c.id, c.split, c.label is None) for c in dataset.cases] == [
        ("a", "train", False),
        ("b", "test", True),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_manifest(tmp_path: Path, delimiter: str) -> None:
    touch(tmp_path, "x/1.png", "x/2.png", "y/1.png", "z/1.png", "m.png")
    rows = [
        ["id", "image", "label", "rater_ann", "trusted", "group", "split", "ignore", "site", "age", "rater"],
        ["p1", "x/1.png", "y/1.png", "z/1.png", "yes", "ward", "", "m.png", "Ulm", "40", "ann"],
        ["p2", "x/2.png", "", "", "", "", "test", "", "", "", ""],
    ]
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8")
    for path in (tmp_path, tmp_path / "cases.csv"):
        dataset = find_cases(path)
        first, second = dataset.cases
        assert first == Case(
            "p1", (tmp_path / "x/1.png",), tmp_path / "y/1.png", {"ann": tmp_path / "z/1.png"},
            trusted=True, group="ward", ignore=tmp_path / "m.png", site="Ulm", rater="ann",
        )  # fmt: skip
        assert (second.id, second.split, second.label) == ("p2", "test", None)


def test_manifest_channels_are_ordered_by_number(tmp_path: Path) -> None:
    names = [f"c{n}.png" for n in range(11)]
    touch(tmp_path, *names, "l.png")
    head = ",".join(f"image_{n}" for n in range(11)) + ",label"
    (tmp_path / "cases.csv").write_text(f"{head}\n{','.join(names)},l.png\n")
    assert [p.name for p in find_cases(tmp_path)["c0"].images] == names


def test_side_file_and_arguments(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"{part}/{case}.png" for part in ("images", "labels", "bea") for case in "abc"),
        "mask.png",
    )
    side = {
        "labels": {"lesion": 255, "ignore": 9}, "channels": ["us"], "trusted": ["a"], "test": ["c"],
        "groups": {"a": "p", "b": "p"}, "ignore_masks": {"b": "mask.png"}, "spacing_mm": [0.2, 0.3],
        "raters": {"bea": "bea"},
    }  # fmt: skip
    (tmp_path / "maskmend.json").write_text(json.dumps(side))
    dataset = find_cases(tmp_path)
    assert dict(dataset.labels) == {"background": 0, "lesion": 255}
    assert next(iter(dataset.labels)) == "background"
    assert (dataset.ignore, dataset.channels, dataset.spacing_mm) == (9, ("us",), (0.2, 0.3))
    assert [c.trusted for c in dataset.cases] == [True, False, False]
    assert [c.group for c in dataset.cases] == ["p", "p", None]
    assert dataset["b"].ignore == tmp_path / "mask.png"
    assert dataset["a"].raters == {"bea": tmp_path / "bea/a.png"}
    assert [c.id for c in dataset.test] == ["c"]
    other = find_cases(tmp_path, labels={"cyst": 1, "background": 0}, channels=["mr"], ignore=3)
    assert list(other.labels.items()) == [("background", 0), ("cyst", 1)]
    assert (other.ignore, other.channels) == (3, ("mr",))


def test_one_rater_as_the_label(real_data: Path) -> None:
    root = real_data / "tiny_unit_test/multirater_2d"
    dataset = find_cases(root, rater="rater3")
    assert {case.label.parent.name for case in dataset.cases if case.label} == {"labels_rater3"}


def test_images_alone_for_prediction(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a_0000.png", "a_0001.png", "b_0000.png", "b_0001.png")
    assert [len(c.images) for c in find_cases(tmp_path, need_labels=False).cases] == [2, 2]
    one = find_cases(tmp_path, need_labels=False, channels=["us"])
    assert [c.id for c in one.cases] == ["a_0000", "a_0001", "b_0000", "b_0001"]
    single = find_cases(tmp_path / "a_0000.png", need_labels=False)
    assert [c.id for c in single.cases] == ["a_0000"]
    touch(tmp_path, "set/images/a.png", "set/images/b.png", "set/labels/b.png", "set/labels/c.png")
    assert len(find_cases(tmp_path / "set", need_labels=False).cases) == 2
    assert "1 labels without an image: c.png" in caplog.text


def _cases(count: int, per_group: int) -> list[Case]:
    return [Case(f"c{n:03d}", (), group=f"g{n // per_group}") for n in range(count)]


@pytest.mark.parametrize("per_group", [1, 3, 7])
def test_split_keeps_groups_and_share(per_group: int) -> None:
    cases = _cases(210, per_group)
    for seed in range(20):
        train, rest = split(cases, 0.2, seed)
        assert sorted([*train, *rest], key=lambda c: c.id) == cases
        assert not {c.group for c in train} & {c.group for c in rest}
        assert abs(len(rest) - 42) <= per_group
        assert split(reversed(cases), 0.2, seed) == (train, rest)
    assert split(cases, 0.2, 0) != split(cases, 0.2, 1)


def test_split_is_never_empty_and_hardly_moves_with_new_cases() -> None:
    train, rest = split(_cases(2, 1), 0.01)
    assert (len(train), len(rest)) == (1, 1)
    assert [len(part) for part in split(_cases(2, 1), 0.99)] == [1, 1]
    assert [len(part) for part in split(_cases(9, 1), 0.0)] == [9, 0]
    assert [len(part) for part in split(_cases(9, 1), 1.0)] == [0, 9]
    before, after = (split(_cases(n, 1), 0.2)[1] for n in (100, 101))
    assert len({c.id for c in before} ^ {c.id for c in after}) <= 2


@pytest.mark.parametrize("per_group", [1, 4])
def test_folds_part_the_cases(per_group: int) -> None:
    cases = _cases(40, per_group)
    parts = folds(cases, 5, seed=3)
    assert sorted(c.id for _, validation in parts for c in validation) == [c.id for c in cases]
    for train, validation in parts:
        assert not {c.group for c in train} & {c.group for c in validation}
        assert len(train) + len(validation) == 40
        assert len(validation) == 8
    assert parts == folds(cases, 5, seed=3) != folds(cases, 5, seed=4)
