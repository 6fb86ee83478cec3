"""Folders in, table out: matching, faults, averages and what is written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from maskmend.config import Config
from maskmend.data.case import Geometry
from maskmend.data.images import write_label
from maskmend.errors import DataError, UsageError
from maskmend.evaluate.table import Evaluation, evaluate


def save(path: Path, label: np.ndarray, shift_mm: float = 0.0) -> None:
    affine = np.diag([0.8, 1.0, 2.0, 1.0])
    affine[0, 3] = shift_mm
    is_png = path.suffix == ".png"
    spacing = (1.0,) * label.ndim if is_png else (2.0, 1.0, 0.8)
    write_label(path, label, Geometry(label.shape, spacing, None if is_png else affine))


def volume(start: int, value: int = 1) -> np.ndarray:
    label = np.zeros((8, 12, 10), np.uint8)
    label[2:6, start : start + 5, 2:8] = value
    return label


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    for index, start in enumerate((2, 3, 4)):
        label = volume(start)
        label[7] = 2
        save(ref / f"case_{index}.nii.gz", label)
        save(pred / f"case_{index}.nii.gz", np.where(volume(2) > 0, 1, label * (label == 2)).astype(np.uint8))
    return pred, ref


def test_figures_by_hand(folders: tuple[Path, Path]) -> None:
    result = evaluate(*folders)
    assert result.labels == {"class_1": 1, "class_2": 2}
    by_case = [row.metrics for row in result.rows if row.label == "class_1"]
    assert [score.dice for score in by_case] == pytest.approx([1, 0.8, 0.6])
    assert result["class_1", "dice"].mean == pytest.approx(0.8)
    assert result["class_1", "dice"].median == pytest.approx(0.8)
    assert 0.6 <= result["class_1", "dice"].low < 0.8 < result["class_1", "dice"].high <= 1
    assert by_case[1].hd95_mm == pytest.approx(1.0)  # shifted by one voxel of 1 mm along the middle axis
    assert result["mean of classes", "dice"].mean == pytest.approx(0.9)
    assert result.volume_unit == "ml"


def test_settings_and_order_do_not_change_results(folders: tuple[Path, Path]) -> None:
    seen: list[tuple[int, int]] = []
    one = evaluate(*folders, progress=lambda done, total: seen.append((done, total)))
    two = evaluate(*folders, processes=2)
    assert one == two
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert evaluate(*folders, config=Config(), seed=5) != one


def test_classes_and_ignore_can_be_chosen(folders: tuple[Path, Path]) -> None:
    result = evaluate(*folders, labels={"background": 0, "organ": 1}, ignore=2, tolerance_mm=0.5)
    assert {row.label for row in result.rows} == {"organ"}
    named = evaluate(*folders, labels={"organ": 1, "unknown": 2}, ignore=2)
    assert {row.label for row in named.rows} == {"organ"}
    assert result.tolerance_mm == 0.5


def test_a_class_called_ignore_is_none(folders: tuple[Path, Path]) -> None:
    result = evaluate(*folders, labels={"organ": 1, "ignore": 2}, bootstrap=10)
    assert {row.label for row in result.rows} == {"organ"}
    assert result.rows == evaluate(*folders, labels={"organ": 1}, ignore=2, bootstrap=10).rows
    with pytest.raises(UsageError, match="the background has the value 2"):
        evaluate(*folders, labels={"organ": 1, "background": 2})


def test_two_files(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    result = evaluate(pred / "case_1.nii.gz", ref / "case_2.nii.gz")
    assert result["class_1", "dice"].mean == pytest.approx(0.6)
    assert np.isnan(result["class_1", "dice"].low)


def test_png_and_missing_classes(tmp_path: Path) -> None:
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    one, none = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    one[2:4, 2:4] = 1
    pairs = {"both": (one, one), "missed": (none, one), "spurious": (one, none), "absent": (none, none)}
    for name, (a, b) in pairs.items():
        save(pred / f"{name}.png", a)
        save(ref / f"{name}.png", b)
    result = evaluate(pred, ref, spacing_mm=(0.5, 0.5))
    dice = result["class_1", "dice"]
    assert (dice.mean, dice.n, dice.n_empty, dice.missed, dice.spurious) == (pytest.approx(1 / 3), 3, 1, 1, 1)
    assert result["class_1", "hd95_mm"].mean == pytest.approx((0 + 5 + 5) / 3)
    assert result["class_1", "volume_difference_relative"].n == 2
    assert (result.volume_unit, result.unit) == ("cm2", "mm")


def test_files_without_a_voxel_size_are_measured_in_pixels(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    pred, ref = tmp_path / "flat pred", tmp_path / "flat ref"
    for folder, start in ((pred, 3), (ref, 2)):
        label = np.zeros((12, 12), np.uint8)
        label[2:6, start : start + 4] = 1
        save(folder / "one.png", label)
    flat = evaluate(pred, ref)
    assert (
        (flat.unit, flat.volume_unit)
        == (flat.to_json()["unit"], flat.to_json()["volume_unit"])
        == ("px", "100 px")
    )
    assert flat["class_1", "hd95_mm"].mean == pytest.approx(1.0)
    shown = printed(flat)
    assert "HD95 px" in shown
    assert "surface Dice at 1 px" in shown
    assert "data.spacing_mm=" in shown
    assert "mm" not in shown.replace("data.spacing_mm=", "")
    for known in (evaluate(pred, ref, spacing_mm=(0.5, 0.5)), evaluate(*folders)):
        assert known.unit == "mm"
        assert "HD95 mm" in printed(known)
        assert "px" not in printed(known)
    assert evaluate(pred, ref, spacing_mm=(0.5, 0.5))["class_1", "hd95_mm"].mean == pytest.approx(0.5)


def test_some_files_without_a_voxel_size(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        save(folder / "flat.png", np.eye(9, dtype=np.uint8))
    result = evaluate(*folders)
    assert (result.unit, result.volume_unit) == ("mm or px", "ml")
    assert "HD95 mm or px" in printed(result)


def printed(result: Evaluation) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result.to_table())
    return console.export_text()


def test_a_data_set_as_reference(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pred, ref = folders
    root = tmp_path / "set"
    for file in ref.iterdir():
        save(root / "labelsTr" / file.name, volume(2))
        save(root / "imagesTr" / file.name.replace(".nii", "_0000.nii"), volume(2))
    labels = {"background": 0, "liver": 1, "ignore": 2}
    facts = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(facts))
    result = evaluate(pred, root)
    assert dict(result.labels) == {"liver": 1}
    assert result["liver", "dice"].mean == pytest.approx(1.0)


def test_cases_of_one_patient_are_drawn_together(tmp_path: Path) -> None:
    rows = ["id,image,label,group"]
    for index in range(12):  # four patients, three equal cases each
        save(tmp_path / "pred" / f"c{index:02d}.nii.gz", volume(2))
        save(tmp_path / "ref" / f"c{index:02d}.nii.gz", volume(2 + index // 3))
        rows.append(f"c{index:02d},ref/c{index:02d}.nii.gz,ref/c{index:02d}.nii.gz,p{index // 3}")
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    grouped = evaluate(tmp_path / "pred", tmp_path / "all.csv")["class_1", "dice"]
    alone = evaluate(tmp_path / "pred", tmp_path / "ref")["class_1", "dice"]
    assert grouped.mean == pytest.approx(alone.mean)
    assert grouped.high - grouped.low > 1.4 * (alone.high - alone.low)


def test_missing_predictions_are_named(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    (pred / "case_1.nii.gz").unlink()
    save(pred / "extra.nii.gz", volume(2))
    with pytest.raises(DataError, match="1 of 3 references have no prediction: case_1"):
        evaluate(pred, ref)
    save(pred / "case_1.nii.gz", volume(2))
    assert evaluate(pred, ref).unmatched == ("extra",)
    for index in range(20):
        save(ref / f"more_{index:02d}.nii.gz", volume(2))
    with pytest.raises(DataError, match=r"more_09 and 10 more"):
        evaluate(pred, ref)


def test_grids_must_agree(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    save(pred / "case_0.nii.gz", volume(2), shift_mm=0.05)
    evaluate(pred, ref)
    save(pred / "case_0.nii.gz", volume(2), shift_mm=0.2)
    with pytest.raises(DataError, match=r"up to 0\.2 mm"):
        evaluate(pred, ref)
    save(pred / "case_0.nii.gz", volume(2).T)
    with pytest.raises(DataError, match="transposed"):
        evaluate(pred, ref)


def test_values_must_mean_the_same(tmp_path: Path) -> None:
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    save(pred / "a.png", volume(2)[3])
    save(ref / "a.png", volume(2, 255)[3])
    with pytest.raises(DataError, match="predictions hold 1, references 255"):
        evaluate(pred, ref)
    save(pred / "a.png", 0 * volume(2)[3])
    assert evaluate(pred, ref)["class_255", "dice"].missed == 1  # an empty prediction is no fault
    save(ref / "a.png", 0 * volume(2)[3])
    with pytest.raises(DataError, match="background alone"):
        evaluate(pred, ref)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        evaluate(tmp_path / "no", tmp_path)
    with pytest.raises(UsageError, match="holds no predictions"):
        evaluate(tmp_path, tmp_path)


def test_json_csv_and_table(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pred, ref = folders
    empty = np.zeros((8, 12, 10), np.uint8)
    for folder in folders:
        save(folder / "none.nii.gz", empty)
    result = evaluate(pred, ref)
    facts = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert len(facts["rows"]) == 8
    assert next(row for row in facts["rows"] if row["case"] == "none")["dice"] is None
    result.to_csv(tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    dice = [float(line["dice"]) for line in lines if line["dice"] and line["label"] == "class_1"]
    assert dice == pytest.approx([1, 0.8, 0.6])
    text = printed(result)
    assert "class_1" in text
    assert "0.800" in text
