"""Several raters against scikit-learn, SimpleITK, published tables and figures that came with the data."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from sklearn.metrics import cohen_kappa_score
from tests.audit.conftest import decathlon
from tests.test_fanout import discs
from typer.testing import CliRunner

from maskmend.audit import consensus
from maskmend.audit.agreement import Outlines, cohen_kappa, compare_raters, fleiss_kappa, vote_of
from maskmend.audit.consensus import rater_weights
from maskmend.audit.rater_page import dispute_pictures
from maskmend.audit.raters import rater_agreement, write_consensus
from maskmend.cli import app, main
from maskmend.data.case import Dataset, Geometry
from maskmend.data.dataset import find_cases
from maskmend.data.images import read_label, write_label
from maskmend.data.preprocess import IGNORED
from maskmend.errors import DataError, UsageError
from maskmend.evaluate.surface import surface_distances

CLASSES = ["background", "organ", "core"]


def ball(
    shape: tuple[int, ...], radius: float, shift: float = 0.0, spacing: tuple[float, ...] | None = None
) -> np.ndarray:
    sides = spacing or (1.0,) * len(shape)
    squares = [((np.arange(n) - (n - 1) / 2 - shift) * s) ** 2 for n, s in zip(shape, sides, strict=True)]
    return (np.sqrt(sum(np.ix_(*squares))) <= radius).astype(np.uint8)


def masks_of(seed: int, shape: tuple[int, ...] = (20, 24), raters: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    base = ball(shape, 7)
    base[tuple(n // 2 for n in shape)] = 2
    return {
        f"r{i}": np.where(rng.random(shape) < 0.1, rng.integers(0, 3, shape), base).astype(np.uint8)
        for i in range(raters)
    }


def data_set(
    root: Path, drawn: dict[str, dict[str, np.ndarray]], suffix: str = ".png", **more: object
) -> Dataset:
    """Masks on disk, by rater and case, without any image."""
    for rater, cases in drawn.items():
        for case, mask in cases.items():
            write_label(root / rater / f"{case}{suffix}", mask, Geometry(mask.shape, (1.0,) * mask.ndim))
    (root / "maskmend.json").write_text(json.dumps(more))
    return find_cases(root, need_images=False, need_labels=False)


# ---- figures of one case ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_cohens_kappa_is_that_of_scikit_learn(seed):
    a, b = list(masks_of(seed).values())[:2]
    assert cohen_kappa(a, b, 3) == pytest.approx(cohen_kappa_score(a.ravel(), b.ravel()))
    hole = np.random.default_rng(seed).random(a.shape) < 0.3
    known = ~hole
    expected = cohen_kappa_score(a[known], b[known])
    assert cohen_kappa(np.where(hole, IGNORED, a).astype(np.uint8), b, 3) == pytest.approx(expected)


def test_fleiss_kappa_of_the_published_example():
    """Fleiss 1971, as in textbooks: 10 subjects, 14 raters, 5 categories, kappa 0.210."""
    table = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
             [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
    rows = np.array([np.repeat(np.arange(5), counts) for counts in table])
    assert fleiss_kappa(rows, np.ones(10, int), 5) == pytest.approx(0.210, abs=5e-4)
    doubled = fleiss_kappa(rows, np.full(10, 7), 5)  # counts are voxels
    assert doubled == pytest.approx(fleiss_kappa(rows, np.ones(10, int), 5))
    silent = np.vstack([rows, [[0] * 13 + [IGNORED]]])  # a voxel that one rater left out
    assert fleiss_kappa(silent, np.ones(11, int), 5) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize(("shape", "spacing"), [((40, 44), (0.7, 1.3)), ((20, 24, 22), (3.0, 1.0, 0.8))])
def test_distances_are_those_of_the_evaluation(shape, spacing):
    rng = np.random.default_rng(0)
    masks = {f"r{i}": ball(shape, rng.uniform(5, 8), rng.uniform(-2, 2)) for i in range(3)}
    found = compare_raters("c", masks, spacing, CLASSES[:2])
    for (a, b), pair in found.pairs.items():
        expected = surface_distances(masks[a] > 0, masks[b] > 0, spacing).average()
        assert pair.distance_mm["organ"] == pytest.approx(expected)
        both = 2 * (masks[a] & masks[b]).sum() / (masks[a].sum() + masks[b].sum())
        assert pair.dice["organ"] == pytest.approx(both)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((120, 120), (0.5, 0.5)), ((60, 60, 60), (1.0, 1.0, 1.0)), ((40, 80, 80), (1.5, 0.75, 0.75))],
)
def test_the_offset_of_balls_is_the_difference_of_their_radii(shape, spacing):
    small, large = (Outlines(ball(shape, r, 0, spacing), spacing, CLASSES[:2]) for r in (16, 18.5))
    assert large.outside(small, "organ") == pytest.approx(2.5, abs=0.25)  # voxels, not spheres
    assert small.outside(large, "organ") == pytest.approx(-large.outside(small, "organ"))
    assert small.outside(small, "organ") == 0
    shifted = Outlines(ball(shape, 16, 2, spacing), spacing, CLASSES[:2])
    assert shifted.outside(small, "organ") == pytest.approx(0, abs=0.05)  # moved, not larger


def test_each_rater_is_compared_with_the_vote_of_the_others():
    shape = (60, 60)
    masks = {"tight": ball(shape, 14), "a": ball(shape, 18), "b": ball(shape, 18), "wide": ball(shape, 22)}
    found = compare_raters("c", masks, (1.0, 1.0), CLASSES[:2])
    for name, expected in (("tight", -4), ("wide", 4), ("a", 0), ("b", 0)):
        assert found.each[name].offset_mm["organ"] == pytest.approx(expected, abs=0.4)
    three = compare_raters(
        "c", {name: masks[name] for name in ("tight", "a", "wide")}, (1.0, 1.0), CLASSES[:2]
    )
    assert three.each["wide"].offset_mm["organ"] == pytest.approx(
        22 - 16, abs=0.5
    )  # with its own vote: 22 - 18
    rest = [mask for name, mask in masks.items() if name != "wide"]
    np.testing.assert_array_equal(vote_of(np.stack(rest), (1.0, 1.0), 2), ball(shape, 18))


def test_a_tied_vote_lies_half_way():
    """A plain vote of two is their intersection, and every rater would look too large beside it."""
    shape = (90, 90)
    vote = vote_of(np.stack([ball(shape, 20), ball(shape, 30)]), (1.0, 1.0), 2)
    radius = np.sqrt(vote.sum() / np.pi)
    assert radius == pytest.approx(25, abs=0.7)
    silent = np.full((2, 4, 4), IGNORED, np.uint8)
    silent[0, 0, 0] = 1
    vote = vote_of(silent, (1.0, 1.0), 2)
    assert vote[0, 0] == 1
    assert (vote.ravel()[1:] == IGNORED).all()


def test_closeness_and_place_by_hand():
    a, b = np.zeros((10, 12), np.uint8), np.zeros((10, 12), np.uint8)
    a[2:4, 2:4], b[2:4, 2:4] = 1, 1
    a[6:9, 7:10] = 1  # nine voxels that b has not drawn
    found = compare_raters("c", {"a": a, "b": b}, (1.0, 1.0), CLASSES[:2])
    assert found.disputed == 9
    assert found.close == pytest.approx(2 * 0.5 * 9 / 13)
    assert found.place == (7, 8)
    three = compare_raters("c", {"a": a, "b": b, "c": b}, (1.0, 1.0), CLASSES[:2])
    assert three.close == pytest.approx(2 * 9 / 3 / 13)
    assert compare_raters("c", {"a": b, "b": b}, (1.0, 1.0), CLASSES[:2]).place is None


# ---- a data set ---------------------------------------------------------------------------------------------------


def styles(root: Path, cases: int = 12) -> Dataset:
    """Rater "wide" draws 3 voxels too far out, "poor" misses the object in two cases."""
    shape, rng = (64, 64), np.random.default_rng(0)
    drawn: dict[str, dict[str, np.ndarray]] = {
        f"labels_{name}": {} for name in ("a", "b", "c", "wide", "poor")
    }
    for i in range(cases):
        radius = rng.uniform(12, 16)
        for name in ("a", "b", "c"):
            drawn[f"labels_{name}"][f"p{i:02d}"] = ball(
                shape, radius + rng.normal(0, 0.3), rng.normal(0, 0.3)
            )
        drawn["labels_wide"][f"p{i:02d}"] = ball(shape, radius + 3)
        drawn["labels_poor"][f"p{i:02d}"] = ball(shape, 0 if i < 2 else radius, 30 if i < 2 else 0) * (i >= 2)
    return data_set(
        root, {key: {c: m.astype(np.uint8) for c, m in value.items()} for key, value in drawn.items()}
    )


def test_styles_are_recognised(tmp_path):
    report = rater_agreement(styles(tmp_path))
    by_name = {one.name: one for one in report.raters}
    wide, poor = by_name["wide"], by_name["poor"]
    assert wide.offset.low > 2
    assert wide.offset.estimate == pytest.approx(3, abs=0.4)
    assert wide.volume_ratio == pytest.approx((17 / 14) ** 2, abs=0.1)
    assert (poor.missed, poor.alone) == (2, 0)
    for name in ("a", "b", "c"):
        assert by_name[name].offset.high < 1
    text = " ".join(" ".join(section.text) for section in report.sections())
    told = re.search(r"wide draws (\d\.\d+) px too large", text)
    assert told is not None
    assert float(told.group(1)) == pytest.approx(3, abs=0.4)
    assert report.unit == "px"
    missing = [one for one in report.disputes if one.case in ("p00", "p01")]
    assert all("4 of 5 raters drew class_1" in one.reason for one in missing)


def test_the_given_label_takes_no_part(tmp_path):
    found = styles(tmp_path)
    before = rater_agreement(found).to_json()
    gold = {case.id: ball((64, 64), 5) for case in found.cases}
    with_given = data_set(tmp_path, {"labels": gold})
    report = rater_agreement(with_given)
    after = report.to_json()
    assert before["pairs"] == after["pairs"]
    assert report.given is not None
    assert report.given.offset.high < -5
    assert report.raters[0].dice_given is not None
    a = found.cases[3].raters["a"]
    mask = read_label(a)[0]
    dice = 2 * (mask * gold[found.cases[3].id]).sum() / (mask.sum() + gold[found.cases[3].id].sum())
    one = next(x for x in report.agreements if x.case == found.cases[3].id)
    assert one.dice_given["a"] == pytest.approx(dice)


def test_intervals_are_over_groups(tmp_path):
    found = styles(tmp_path)
    few = replace(found, cases=tuple(replace(case, group=f"g{i % 3}") for i, case in enumerate(found.cases)))
    assert rater_agreement(found).dice.n == 12
    wide, narrow = (rater_agreement(one).raters[0].dice_others for one in (few, found))
    assert (wide.low, wide.high) != (narrow.low, narrow.high)


def test_spacing_by_case_makes_millimetres(tmp_path):
    found = styles(tmp_path)
    plain = rater_agreement(found)
    half = rater_agreement(found, spacing_mm={case.id: (0.5, 0.5) for case in found.cases})
    assert half.unit == "mm"
    assert half.distance.estimate == pytest.approx(plain.distance.estimate / 2)


def test_faults_are_told(tmp_path):
    found = styles(tmp_path)
    with pytest.raises(UsageError, match="unknown rater 'anna'"):
        rater_agreement(found, raters=["anna"])
    with pytest.raises(UsageError, match="1 rater"):
        rater_agreement(found, raters=["a"])
    write_label(found.cases[0].raters["a"], np.ones((5, 5), np.uint8), Geometry((5, 5), (1.0, 1.0)))
    first, second = (found.cases[0].raters[name] for name in ("a", "b"))
    with pytest.raises(DataError, match="shape") as caught:
        rater_agreement(found)
    said = str(caught.value)
    assert str(first) in said
    assert str(second) in said
    assert "export one of them again on the image's grid" in said
    assert "--fix" not in said  # it leaves raters' masks of another shape as they are
    alone = data_set(tmp_path / "x", {"labels_a": {"p": ball((9, 9), 3)}, "labels_b": {"q": ball((9, 9), 3)}})
    with pytest.raises(UsageError, match="no case was drawn by two"):
        rater_agreement(alone)
    odd = data_set(
        tmp_path / "y",
        {"labels_a": {"p": ball((9, 9), 3) * 3}, "labels_b": {"p": ball((9, 9), 3)}},
        labels={"o": 1},
    )
    with pytest.raises(DataError, match="no class: 3"):
        rater_agreement(odd)
    grey = data_set(
        tmp_path / "z", {"labels_a": {"p": ball((9, 9), 3) * 255}, "labels_b": {"p": ball((9, 9), 3) * 255}}
    )
    with pytest.raises(DataError, match="255"):
        rater_agreement(grey)


def in_space(
    root: Path, name: str, mask: np.ndarray, *, turned: bool = False, shifted_mm: float = 0.0
) -> None:
    """A NIfTI file by nibabel; turned: the same anatomy, saved with the two other directions first."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = (-20 + shifted_mm, 5, 7)
    image = nibabel.Nifti1Image(np.ascontiguousarray(mask.T), affine)
    if turned:
        ras, lps = (nibabel.orientations.axcodes2ornt(codes) for codes in ("RAS", "LPS"))
        image = image.as_reoriented(nibabel.orientations.ornt_transform(ras, lps))
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, root / name)


@pytest.mark.parametrize("with_images", [True, False])
def test_masks_that_lie_elsewhere_are_refused_and_the_remedy_mends_them(tmp_path, capsys, with_images):
    """Two raters who drew the same, one of whom saved it as LPS: by index the masks hardly meet."""
    root, mask = tmp_path / "data", np.zeros((12, 20, 20), np.uint8)
    mask[3:7, 3:9, 4:10] = 1
    for case in ("p", "q"):
        in_space(root, f"labels_a/{case}.nii.gz", mask)
        in_space(root, f"labels_b/{case}.nii.gz", mask, turned=case == "q")
        in_space(root, f"labels_c/{case}_more.nii.gz", mask)  # of cases that a did not draw
        in_space(root, f"labels_b/{case}_more.nii.gz", mask)
        if with_images:
            shades = np.random.default_rng(0).integers(0, 99, mask.shape).astype(np.uint8)
            in_space(root, f"images/{case}.nii.gz", shades)
            in_space(root, f"images/{case}_more.nii.gz", shades)
    assert main(["raters", str(root), "-o", str(tmp_path / "out")]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"{np.hypot(19, 19):.3g} mm" in said
    if with_images:
        told = re.search(r"`maskmend (check DATASET --fix OUT .*?)`", said)  # there is no labels/
        assert told is not None
        words = shlex.split(told[1].replace("DATASET", str(root)).replace("OUT", str(tmp_path / "mended")))
        assert main(words) == 3  # it tells the fault, and mends it in the copy
        capsys.readouterr()
    else:
        assert "--fix" not in said
        assert "labels_a" in said
        shutil.copytree(root, tmp_path / "mended")
        files = [str(tmp_path / "mended" / f"labels_{name}" / "q.nii.gz") for name in "ab"]
        first, second = map(sitk.ReadImage, files)
        sitk.WriteImage(sitk.Resample(second, first, sitk.Transform(), sitk.sitkNearestNeighbor), files[1])
    assert main(["raters", str(tmp_path / "mended"), "-o", str(tmp_path / "out"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["cases"] == 4
    assert answer["dice"]["estimate"] == 1


@pytest.mark.parametrize(("shifted_mm", "refused"), [(0.05, False), (3.0, True)])
def test_rounding_in_headers_is_no_other_place(tmp_path, shifted_mm, refused):
    mask = ball((8, 16, 16), 4)
    in_space(tmp_path, "labels_a/p.nii.gz", mask)
    in_space(tmp_path, "labels_b/p.nii.gz", mask, shifted_mm=shifted_mm)
    found = find_cases(tmp_path, need_images=False, need_labels=False)
    if refused:
        with pytest.raises(DataError, match="3 mm"):
            rater_agreement(found)
        with pytest.raises(DataError, match="3 mm"):
            write_consensus(replace(found, labels={"background": 0, "organ": 1}), tmp_path / "out")
    else:
        assert rater_agreement(found).dice.estimate == 1
    assert (
        rater_agreement(replace(found, spacing_mm=(1.0, 1.0, 1.0))).dice.estimate == 1
    )  # headers do not count


def test_raters_who_use_different_values_are_told(tmp_path, capsys):
    """The same two objects, as 1 and 2 by one rater and as 3 and 7 by the other."""
    mask = ball((30, 30), 9) + ball((30, 30), 4)
    other = np.array([0, 3, 7], np.uint8)[mask]
    data_set(
        tmp_path / "data", {"labels_anna": {"p": mask, "q": mask}, "labels_ben": {"p": other, "q": other}}
    )
    assert main(["raters", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--json"]) == 0
    answer = capsys.readouterr()
    (told,) = json.loads(answer.out)["warnings"]
    for text in (told, " ".join(answer.err.split()), (tmp_path / "out" / "raters.html").read_text("utf-8")):
        for phrase in (
            "different values",
            "class_1, class_2",
            "class_3, class_7",
            "anna",
            "ben",
            "data.labels=",
        ):
            assert phrase in text
    data_set(
        tmp_path / "same", {"labels_a": {"p": mask, "q": mask // 2}, "labels_b": {"p": mask, "q": mask // 2}}
    )
    assert rater_agreement(find_cases(tmp_path / "same", need_images=False, need_labels=False)).warnings == []


def test_a_class_that_one_rater_never_draws_is_no_other_value(tmp_path):
    mask = ball((30, 30), 9) + ball((30, 30), 4)
    few = (mask > 0).astype(np.uint8)
    found = data_set(tmp_path, {"labels_a": {"p": mask}, "labels_b": {"p": few}})
    assert rater_agreement(found).warnings == []


def test_pictures_of_disputes_show_images_of_several_channels_in_one_file(tmp_path):
    """A tile holds the greys of a noisy image, not the one grey of a case without an image."""
    report = rater_agreement(decathlon(tmp_path, raters=["a", "b"]))
    (picture,) = dispute_pictures(report)
    tile = np.asarray(Image.open(io.BytesIO(picture.png)).convert("L"))[20:200, 20:200]
    assert np.bincount(tile.ravel()).max() < 0.3 * tile.size


# ---- consensus ------------------------------------------------------------------------------------------------------


def test_consensus_is_that_of_simpleitk(tmp_path):
    drawn = {f"labels_{name}": {} for name in ("a", "b", "c")}  # type: ignore[var-annotated]
    for i in range(3):
        for name, mask in zip("abc", masks_of(i, raters=3).values(), strict=True):
            drawn[f"labels_{name}"][f"p{i}"] = (mask > 0).astype(np.uint8)
    found = replace(data_set(tmp_path, drawn), labels={"background": 0, "organ": 1})
    written = {rule: write_consensus(found, tmp_path / rule, rule) for rule in ("majority", "staple")}
    for i in range(3):
        images = [sitk.GetImageFromArray(drawn[f"labels_{name}"][f"p{i}"]) for name in "abc"]
        voted = sitk.GetArrayFromImage(sitk.LabelVoting(images, 9))
        np.testing.assert_array_equal(read_label(written["majority"][i])[0], voted)
        staple = sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0))
        np.testing.assert_array_equal(read_label(written["staple"][i])[0], staple > 0.5)


def test_a_weighted_vote_follows_the_better_raters(tmp_path):
    good, bad = ball((20, 20), 6), np.zeros((20, 20), np.uint8)
    drawn = {"labels_a": {"p": good}, "labels_b": {"p": bad}, "labels_c": {"p": bad}}
    found = replace(data_set(tmp_path, drawn), labels={"background": 0, "organ": 1})
    weights = rater_weights({"a": 0.95, "b": 0.6, "c": 0.6})
    assert weights["a"] > weights["b"] + weights["c"]
    (path,) = write_consensus(found, tmp_path / "out", "weighted", weights=weights)
    np.testing.assert_array_equal(read_label(path)[0], good)
    (path,) = write_consensus(found, tmp_path / "plain", "majority")
    assert not read_label(path)[0].any()


def test_consensus_keeps_file_values_and_silence(tmp_path):
    mask = ball((20, 20), 6) * 7
    mask[0, 0] = 9
    drawn = {"labels_a": {"p": mask}, "labels_b": {"p": mask}}
    found = data_set(tmp_path, drawn, labels={"organ": 7}, ignore=9)
    (path,) = write_consensus(found, tmp_path / "out", "staple")
    np.testing.assert_array_equal(read_label(path)[0], mask)


# ---- real raters ----------------------------------------------------------------------------------------------------


def test_lidc_agrees_with_the_figures_that_came_with_it(real_data):
    root = real_data / "lidc_nodule_masks_4raters_noimages"
    found = find_cases(root, need_images=False, need_labels=False)
    found = replace(found, cases=found.cases[::15])
    report = rater_agreement(found)
    rows = {row["stem"]: row for row in csv.DictReader((root / "nodules.csv").open())}
    for one in report.disputes:
        assert one.dice == pytest.approx(float(rows[one.case]["mean_pairwise_dice"]), abs=6e-5)
    for one in report.agreements:
        areas = [one.each[f"rater{k}"].voxels["class_1"] for k in range(1, 5)]
        assert areas == [int(rows[one.case][f"area_r{k}"]) for k in range(1, 5)]


def test_the_crowd_against_gold_is_as_its_table_says(real_data):
    root = real_data / "bubil_cells_crowd_vs_expert"
    found = find_cases(root, need_images=False, need_labels=False)
    small = [case for case in found.cases if case.id.startswith("ds4")][:12]
    report = rater_agreement(replace(found, cases=tuple(small)), raters=["rater*"])
    rows = {row["stem"]: row for row in csv.DictReader((root / "dice_vs_gold.csv").open())}
    for one in report.agreements:
        for name, dice in one.dice_given.items():
            assert dice == pytest.approx(float(rows[one.case][f"dice_{name}"]), abs=6e-5)


# ---- the verb -------------------------------------------------------------------------------------------------------


def test_the_verb_writes_page_figures_and_consensus(tmp_path):
    styles(tmp_path / "data")
    words = [
        "raters",
        str(tmp_path / "data"),
        "-o",
        str(tmp_path / "out"),
        "--consensus",
        "weighted",
        "--json",
    ]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0
    told = json.loads(answer.stdout)
    assert [one["name"] for one in told["raters"]] == ["a", "b", "c", "poor", "wide"]
    assert told["consensus"]["masks"] == 12
    assert len(list((tmp_path / "out" / "consensus").iterdir())) == 12
    stored = json.loads((tmp_path / "out" / "raters.json").read_text())
    assert stored["pairs"] == told["pairs"]
    page = (tmp_path / "out" / "raters.html").read_text("utf-8")
    assert "Cases to adjudicate first" in page
    assert page.count("<img") >= 3
    # Places are not torn apart and reasons not squeezed, however narrow the window.
    assert re.search(r'<td class="told">[^<]+</td><td class="whole">\d+, \d+</td></tr>', page)
    assert re.search(r"\.whole {[^}]*white-space: nowrap", page)
    assert re.search(r"\.told {[^}]*min-width", page)
    assert main(words) == 2  # it holds results already
    assert main([*words[:-1], "--overwrite"]) == 0


def test_a_stopped_consensus_begins_anew(tmp_path, monkeypatch, capsys):
    styles(tmp_path / "data")
    words = ["raters", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--consensus", "majority"]
    write, written = consensus.write_label, []

    def stopped(path, *what):
        write(path, *what)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(consensus, "write_label", stopped)
        assert main(words) == 130
    said = capsys.readouterr().err
    assert "the same command begins anew" in said
    assert "goes on" not in said
    assert main(words) == 0
    assert len(list((tmp_path / "out" / "consensus").iterdir())) == 12


def test_the_verb_tells_what_is_wrong(tmp_path, capsys):
    styles(tmp_path / "data")
    assert main(["raters", str(tmp_path / "data"), "-o", str(tmp_path / "o"), "--consensus", "stapel"]) == 2
    assert "did you mean 'staple'" in capsys.readouterr().err
    assert main(["raters", str(tmp_path / "data"), "-o", str(tmp_path / "o"), "data.raters=[x*]"]) == 2
    assert main(["raters", str(tmp_path / "data"), "-o", str(tmp_path / "o"), "train.steps=4"]) == 2


def test_an_audit_names_the_command_that_compares_raters(tmp_path, capsys):
    """Only where there are any to compare."""
    source = discs(tmp_path / "my discs", count=12)
    words = ["audit", str(source), "--probs", str(source / "probs"), "-o"]
    assert main([*words, str(tmp_path / "one")]) == 0
    assert "maskmend raters" not in capsys.readouterr().err
    for rater in ("ann", "bob"):
        shutil.copytree(source / "labels", source / f"labels_{rater}")
    (source / "labels_bob" / "03.png").unlink()
    assert main([*words, str(tmp_path / "several")]) == 0
    said = capsys.readouterr().err
    offered = re.search(r"several raters drew 11 of the cases: `(maskmend raters .* -o) RATERS`", said)
    assert offered
    assert main([*shlex.split(offered[1])[1:], str(tmp_path / "raters")]) == 0
