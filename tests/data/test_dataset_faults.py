"""Faults 1, 2, 3 and 26 of a data set, misspelt keys, and label values that must not be guessed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmend.data.dataset import find_cases, folds, infer_labels
from maskmend.errors import DataError, UsageError


def pairs(root: Path, *names: str) -> Path:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.fromarray(np.array([[0, 1]], np.uint8)).save(root / folder / f"{name}.png")
    return root


def test_missing_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as info:
        find_cases("nowhere")
    assert str(info.value).startswith(f"nowhere: does not exist ({tmp_path}/nowhere)")
    assert len(info.value.remedy.splitlines()) == 4
    with pytest.raises(UsageError, match="is empty"):
        find_cases(tmp_path)
    pairs(tmp_path / "set")
    with pytest.raises(UsageError, match="holds no cases"):
        find_cases(tmp_path / "set")
    with pytest.raises(UsageError, match=r"did you mean .*/set\?"):
        find_cases(tmp_path)
    with pytest.raises(UsageError, match=r"did you mean .*/set\?"):
        find_cases(tmp_path / "set/labels")


def test_unpaired_files_are_listed(tmp_path: Path) -> None:
    pairs(tmp_path, *(f"c{n:02d}" for n in range(15)))
    for n in range(12):
        (tmp_path / f"labels/c{n:02d}.png").unlink()
    (tmp_path / "images/c14.png").unlink()
    with pytest.raises(DataError) as info:
        find_cases(tmp_path)
    text = str(info.value)
    assert "12 images without a label: c00, c01" in text
    assert "c09, ..." in text
    assert "c10" not in text
    assert "1 labels without an image: c14.png" in text


def test_test_cases_need_no_label(tmp_path: Path) -> None:
    pairs(tmp_path, "a", "b")
    (tmp_path / "labels/b.png").unlink()
    (tmp_path / "maskmend.json").write_text('{"test": ["b"]}')
    assert find_cases(tmp_path)["b"].label is None


def test_missing_channel(tmp_path: Path) -> None:
    pairs(tmp_path, "a", "b")
    for name in ("a_0000", "a_0001", "b_0000"):
        (tmp_path / f"images/{name}.png").write_bytes(b"x")
    for name in ("a", "b"):
        (tmp_path / f"images/{name}.png").unlink()
    with pytest.raises(DataError, match=r"b: the channel file b_0001\.png is missing \(1 of 2"):
        find_cases(tmp_path)


def test_declared_channels_count(tmp_path: Path) -> None:
    for name in ("imagesTr/a_0000.png", "labelsTr/a.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "T2"}, "labels": {"x": 1}}')
    with pytest.raises(DataError, match=r"a_0001\.png is missing"):
        find_cases(tmp_path)


def test_ids_that_differ_by_letter_case(tmp_path: Path) -> None:
    pairs(tmp_path, "Case1", "case1")
    if len(list((tmp_path / "images").iterdir())) < 2:
        pytest.skip("this file system cannot hold them")
    with pytest.raises(DataError, match="Case1 and case1 differ only by letter case"):
        find_cases(tmp_path)


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    pairs(tmp_path, "a")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "images/a.jpg")
    with pytest.raises(DataError, match=r"two files for one case: a\.jpg and a\.png"):
        find_cases(tmp_path)


def test_the_same_case_in_train_and_test(tmp_path: Path) -> None:
    pairs(tmp_path / "train", "a")
    pairs(tmp_path / "test", "a")
    with pytest.raises(DataError, match="leak: the case a is both in train and test"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"truste": ["a"]}', "unknown key 'truste'\n  did you mean 'trusted'"),
        ('{"trusted": ["aa"]}', "unknown case in 'trusted' 'aa'\n  did you mean 'a'"),
        ('{"ignore": "high"}', "ignore: .*got 'high'"),
        ('{"labels": {"x": 1, "y": 1}}', "two classes have the value 1"),
        ('{"labels": {"x": -1}}', "negative value -1"),
        (
            '{"labels": {"background": 255, "x": 1}}',
            r"maskmend.json: the background has the value 255.*\n.*0 in place of 255 .*\{background: 0, x: 1\}",
        ),
        (
            '{"labels": {"Background": 7, "x": 0, "y": 2}}',
            r"the background has the value 7.*\n.*0 and 7 exchanged .*\{Background: 0, x: 7, y: 2\}",
        ),
        ('{"raters": {"ann": "gone"}}', "the folder gone of the rater 'ann' does not exist"),
        ('{"ignore_masks": {"a": "gone.png"}}', r"gone\.png of a does not exist"),
        ('{\n"trusted": [}', "line 2 is no valid JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_side_file_faults(tmp_path: Path, content: str, message: str) -> None:
    (pairs(tmp_path, "a", "b") / "maskmend.json").write_text(content)
    with pytest.raises((UsageError, DataError), match=message):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,lable\na.png,b.png\n", "unknown column 'lable'\n  did you mean 'label'"),
        ("id,label\n1,b.png\n", "no column 'image'"),
        ("image,label\ngone.png,a.png\n", r"cases\.csv line 2: the file gone\.png does not exist"),
        ("image,label,trusted\na.png,a.png,perhaps\n", "trusted is 'perhaps'"),
        ("image,label,split\na.png,a.png,val\n", "split is 'val'"),
        ("id,image,label\n../x,a.png,a.png\n", "'../x' cannot be a file name"),
        ("id,image,label\nx,a.png,a.png\nx,a.png,a.png\n", "the id x occurs twice"),
        ("image,label\n", "holds no cases"),
    ],
)
def test_manifest_faults(tmp_path: Path, text: str, message: str) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises((UsageError, DataError), match=message):
        find_cases(tmp_path / "cases.csv")


@pytest.mark.parametrize("image", ["../secret.nii.gz", "/etc/passwd"])
def test_a_downloaded_list_cannot_point_outside(tmp_path: Path, image: str) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": image, "label": image}]}))
    with pytest.raises(DataError, match="outside the data set"):
        find_cases(tmp_path)


def test_region_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "whole": [1, 2]}}')
    with pytest.raises(DataError, match="'whole' is a region"):
        find_cases(tmp_path)


@pytest.mark.parametrize("by", ["caller", "side file"])
def test_what_is_said_of_regions_helps(tmp_path: Path, by: str) -> None:
    """Classes named elsewhere count, and the ignore value of the file still does."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "imagesTr/a_0000.png").touch()
    (tmp_path / "labelsTr/a.png").touch()
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": regions, "regions_class_order": [1, 2]}))
    classes = {"rim": 1, "core": 2}
    if by == "side file":
        (tmp_path / "maskmend.json").write_text(json.dumps({"labels": classes}))
    dataset = find_cases(tmp_path, labels=classes if by == "caller" else None)
    assert dict(dataset.labels) == {"background": 0, "rim": 1, "core": 2}
    assert dataset.ignore == 3


def test_misspelt_choices(tmp_path: Path) -> None:
    pairs(tmp_path, "a", "b")
    pairs(tmp_path / "x", "a", "b")
    (tmp_path / "x/labels").rename(tmp_path / "labels_ann")
    with pytest.raises(UsageError, match="did you mean 'folders'"):
        find_cases(tmp_path, layout="folder")
    with pytest.raises(UsageError, match="did you mean 'ann'"):
        find_cases(tmp_path, rater="anna")
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match=r"labels by rater only.*\n.*ann"):
        find_cases(tmp_path)
    with pytest.raises(UsageError, match="3 folds of 2"):
        folds(find_cases(tmp_path, rater="ann"), 3)


def _labelled(root: Path, *rows: list[int]) -> Path:
    pairs(root, *"abc"[: len(rows)])
    for name, row in zip("abc", rows, strict=False):
        Image.fromarray(np.array([row], np.uint8)).save(root / f"labels/{name}.png")
    return root


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 255], [0, 0]], r"foreground: 255"),
        ([[0, 1, 255], [0, 1, 1]], r"data\.ignore=255 or data\.labels="),
        (
            [[0] * 300 + list(range(1, 144)), [0]],
            r"144 values: saved as JPEG or resized with interpolation\?",
        ),
    ],
)
def test_values_that_are_not_guessed(tmp_path: Path, rows: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        infer_labels(find_cases(_labelled(tmp_path, *rows)))


def test_values_that_are_clear(tmp_path: Path) -> None:
    dataset = find_cases(_labelled(tmp_path, [0, 1, 4], [0, 2, 2]))
    assert dict(infer_labels(dataset).labels) == {"background": 0, "class_1": 1, "class_2": 2, "class_4": 4}
    ignoring = find_cases(tmp_path, ignore=4)
    assert dict(infer_labels(ignoring).labels) == {"background": 0, "class_1": 1, "class_2": 2}
    declared = find_cases(tmp_path, labels={"all": 1})
    assert infer_labels(declared) is declared
