"""The screen verb: flawed masks first, without a model, from the command line and from Python."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import maskmend
from maskmend.appearance import Mender
from maskmend.audit.mending import Mended, Outlined
from maskmend.audit.outlines import ImageWitness
from maskmend.cli import main
from maskmend.data.case import Case, Geometry
from maskmend.data.images import read_label, write_image, write_label
from maskmend.data.phantom import make_phantom


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A data set of which every third mask is drawn too large, and one is empty."""
    root = tmp_path_factory.mktemp("screened")
    make_phantom(root / "true", train=36, test=0, shape=(64, 64))
    words = ["--noise", "dilate", "--rate", "0.33", "--seed", "1", "--target-dice", "0.8"]
    assert main(["corrupt", str(root / "true"), "-o", str(root / "flawed"), *words]) == 0
    wrong = set()
    for file in sorted((root / "true" / "labels").iterdir()):
        if not np.array_equal(read_label(file)[0], read_label(root / "flawed" / "labels" / file.name)[0]):
            wrong.add(file.stem)
    sound = next(f for f in sorted((root / "flawed" / "labels").iterdir()) if f.stem not in wrong)
    label, geometry = read_label(sound)
    write_label(sound, np.zeros_like(label), geometry)
    return root / "flawed", wrong


def test_flawed_masks_come_first(flawed: tuple[Path, set[str]], tmp_path: Path, capsys) -> None:
    folder, wrong = flawed
    table = tmp_path / "list.csv"
    capsys.readouterr()
    assert main(["screen", str(folder), "-o", str(table), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["cases"]) == 35
    assert len(answer["silent"]) == 1
    rows = list(csv.DictReader(table.open()))
    assert [row["case"] for row in rows] == [one["case"] for one in answer["cases"]]
    assert all(Path(row["label"]).is_file() for row in rows)
    odds = np.array([float(row["odds"]) for row in rows])
    assert (np.diff(odds) <= 0).all()
    hit = np.array([row["case"] in wrong for row in rows])
    wins = (odds[hit][:, None] > odds[~hit]).mean()
    assert wins > 0.9
    python = maskmend.screen(folder)
    assert [one.case for one in python.cases] == [row["case"] for row in rows]
    for name in ("--output", "--out"):
        again = tmp_path / f"{name}.csv"
        assert main(["screen", str(folder), name, str(again)]) == 0
        assert again.read_bytes() == table.read_bytes()


def test_the_terminal_says_what_came_out(flawed: tuple[Path, set[str]], capsys) -> None:
    capsys.readouterr()
    assert main(["screen", str(flawed[0])]) == 0
    out = capsys.readouterr().out
    assert "masks" in out
    assert "unexplained" in out
    assert sum(line.lstrip().startswith(("│", "|")) for line in out.splitlines()) >= 20


def test_too_few_masks(tmp_path: Path, capsys) -> None:
    make_phantom(tmp_path / "few", train=12, test=0, shape=(32, 32))
    assert main(["screen", str(tmp_path / "few")]) == 3
    assert "fewer than 20" in capsys.readouterr().err


def test_more_classes_than_a_byte_tells_apart(tmp_path: Path, capsys) -> None:
    folder, mask = tmp_path / "many", np.arange(400).reshape(20, 20) % 300
    for number in range(20):
        shades = np.random.default_rng(number).integers(0, 255, (1, 20, 20)).astype(np.uint8)
        write_image(folder / "images" / f"p{number}.png", shades, Geometry((20, 20), (1.0, 1.0)))
        write_label(folder / "labels" / f"p{number}.png", mask, Geometry((20, 20), (1.0, 1.0)))
    classes = {"background": 0, **{f"part {value}": value for value in range(1, 300)}}
    (folder / "maskmend.json").write_text(json.dumps({"labels": classes}))
    for words in (["screen", str(folder)], ["audit", str(folder), "-o", str(tmp_path / "out")]):
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "300 classes" in said
        assert "254" in said
        assert "merge classes" in said


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * ((a > 0) & (b > 0)).sum() / max((a > 0).sum() + (b > 0).sum(), 1)


def test_a_stopped_mending_begins_anew(
    flawed: tuple[Path, set[str]], tmp_path: Path, capsys, monkeypatch
) -> None:
    out = tmp_path / "mended"
    words = ["screen", str(flawed[0]), "--mend", str(out), "--processes", "1"]
    write, written = Mended.write, []

    def stopped(self: Mended, case: Case, folder: Path) -> None:
        write(self, case, folder)
        written.append(case.id)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Mended, "write", stopped)
        assert main(words) == 130
    assert "the same command begins anew" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(words) == 0
    assert len(list(out.iterdir())) > 2


def test_suspects_are_mended(flawed: tuple[Path, set[str]], tmp_path: Path, capsys) -> None:
    folder, wrong = flawed
    originals = {file.name: file.read_bytes() for file in (folder / "labels").iterdir()}
    capsys.readouterr()
    assert main(["screen", str(folder), "--mend", str(tmp_path / "mended"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    written = {file.name.split(".")[0]: file for file in (tmp_path / "mended").iterdir()}
    assert set(written) == set(answer["mended"])
    assert len(written) >= 0.6 * len(wrong)
    assert len(set(written) - wrong) <= 1
    assert f"{len(written)} mended" in answer["verdict"]
    before, after = [], []
    for name, file in written.items():
        given, geometry = read_label(folder / "labels" / file.name)
        mended, its = read_label(file)
        truth = read_label(folder.parent / "true" / "labels" / file.name)[0]
        assert mended.shape == given.shape
        assert its == geometry
        assert set(np.unique(mended)) <= set(np.unique(given))
        if name not in wrong:
            continue
        assert answer["mended"][name] < 0  # drawn too large: the outline goes inwards
        before.append(_dice(given, truth))
        after.append(_dice(mended, truth))
    assert np.mean(after) > np.mean(before) + 0.08
    assert {file.name: file.read_bytes() for file in (folder / "labels").iterdir()} == originals


def test_mirrored_masks_are_found_and_mirrored_back(tmp_path: Path, capsys) -> None:
    """Three of forty masks are of the mirrored image; nothing else is wrong."""
    make_phantom(tmp_path / "data", train=40, test=0, shape=(64, 64))
    files = sorted((tmp_path / "data" / "labels").iterdir())
    truth = {}
    for file in files:
        label, geometry = read_label(file)
        if _dice(label, label[:, ::-1]) < 0.7 and len(truth) < 3:
            truth[file.stem] = label
            write_label(file, label[:, ::-1].copy(), geometry)
    assert len(truth) == 3
    capsys.readouterr()
    table = tmp_path / "list.csv"
    words = ["screen", str(tmp_path / "data"), "-o", str(table), "--mend", str(tmp_path / "mended"), "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    found = {one["case"] for one in answer["cases"] if one["mirrored"] > 0}
    assert found == set(truth)
    assert "3 mirrored" in answer["verdict"]
    rows = {row["case"]: row for row in csv.DictReader(table.open())}
    assert {case for case, row in rows.items() if float(row["mirrored"]) > 0} == found
    for case, label in truth.items():
        assert answer["mended"][case] == 0
        np.testing.assert_array_equal(read_label(tmp_path / "mended" / f"{case}.png")[0], label)
    assert main(["screen", str(tmp_path / "data")]) == 0
    assert "mirrored" in capsys.readouterr().out


def test_mirrored_masks_of_real_slices(real_data: Path, tmp_path: Path) -> None:
    """Three of eighty hippocampus masks are mirrored: most are found, and no other is called so."""
    found = sorted((real_data / "msd_hippocampus_2d" / "labels").iterdir())
    wrong: set[str] = set()
    for file in (found[i] for i in np.random.default_rng(1).permutation(len(found))[:80]):
        label, geometry = read_label(file)
        if label.any() and _dice(label, label[:, ::-1]) < 0.4 and len(wrong) < 3:
            wrong.add(file.stem)
            label = label[:, ::-1].copy()
        write_label(tmp_path / "labels" / file.name, label, geometry)
        image = next((real_data / "msd_hippocampus_2d" / "images").glob(f"{file.stem}*"))
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / image.name).write_bytes(image.read_bytes())
    screened = maskmend.screen(tmp_path)
    mirrored = {one.case for one in screened.cases if one.mirrored > 0}
    assert mirrored <= wrong
    assert len(mirrored) >= 2


def test_nothing_is_replaced_by_mended_masks(flawed: tuple[Path, set[str]], capsys) -> None:
    assert main(["screen", str(flawed[0]), "--mend", str(flawed[0] / "labels")]) == 2
    assert "name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("ndim", [2, 3])
def test_moving_by_mm_on_an_uneven_grid(ndim: int) -> None:
    """A ball in voxels of 1 x 2 (x 1) mm, made 2 mm larger: known radii."""
    from maskmend.appearance import moved_labels, signed_distance

    spacing = (1.0, 2.0, 1.0)[:ndim]
    axes = np.meshgrid(*[(np.arange(41) - 20) * step for step in spacing], indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    small, large = (distance <= 9).astype(np.uint8), (distance <= 11).astype(np.uint8)
    moved = moved_labels(small, signed_distance(small > 0, spacing), -2.0, spacing)
    assert _dice(moved, large) > 0.96
    assert _dice(small, large) < 0.85


def test_no_round_cell_is_called_mirrored(real_data: Path) -> None:
    """Cells whose outlines hardly any image explains: what is nearly its own mirror image gains by chance."""
    assert not [
        one for one in maskmend.screen(real_data / "bubil_cells_crowd_vs_expert").cases if one.mirrored
    ]


@pytest.mark.parametrize(
    ("column", "better", "mirrored"),
    [(18, 0.92, False), (18, 0.89, True), (12, 0.92, True), (12, 0.99, True), (12, 1.05, False)],
)
def test_a_nearly_symmetric_mask_must_be_explained_as_well_as_others(
    column: int, better: float, mirrored: bool
) -> None:
    """A disc off the middle (19.5) by 1.5 or 7.5 pixels; believed outlines leave .88 unexplained."""

    class Told(Outlined):
        @property
        def unexplained(self) -> float:
            return better if np.nonzero(self.label)[1].mean() > 19.5 else 1.1

    label = (np.hypot(*np.ogrid[-19.5:20.5, -column : 40 - column]) < 9).astype(np.uint8)
    mender = Mender(torch.zeros(2, 4), torch.zeros(5, 4), torch.tensor([1.0, 0.88]))
    witness = ImageWitness(mender=mender, numbers={"c": 0})
    found = Told(np.zeros((1, 40, 40)), label, None, (1.0, 1.0), witness, "c").mirrored()
    assert (found is not None) == mirrored
    if found is not None:
        np.testing.assert_array_equal(found[0], label[:, ::-1])
        assert found[1] == pytest.approx((1.1 - better) / (1.1 - 0.88))
