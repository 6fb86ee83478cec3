"""Rows 25 and 26, and what a check says when nothing or much is wrong."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image
from rich.console import Console

from maskmend.cli import main
from maskmend.data.check import check
from maskmend.errors import DataError, ResourceError


def test_row_25_same_image_in_train_and_test(flat, expect):
    Image.open(flat / "images" / "c0.png").save(flat / "images" / "c3.png", compress_level=0)
    files = [(flat / "images" / f"c{number}.png").read_bytes() for number in (0, 3)]
    assert files[0] != files[1], "other bytes, the same pixels"
    (flat / "maskmend.json").write_text(json.dumps({"test": ["c3"]}))
    expect(flat, 25, "leak", "c0, c3", "train and test")


def test_row_25_same_patient_in_train_and_test(flat, expect):
    facts = {"test": ["c3"], "groups": {"c1": "patient 7", "c3": "patient 7"}}
    (flat / "maskmend.json").write_text(json.dumps(facts))
    expect(flat, 25, "leak", "'patient 7'", "c1, c3")


def test_row_25_twins_within_training_are_a_warning(flat, expect):
    Image.open(flat / "images" / "c0.png").save(flat / "images" / "c3.png", compress_level=0)
    expect(flat, 25, "c0, c3", "group", severity="warning")


def test_row_26_ids_that_differ_by_letter_case(flat, expect):
    for folder in ("images", "labels"):
        target = flat / folder / "C1.png"
        if target.exists():
            pytest.skip("this file system does not tell letter case apart")
        target.write_bytes((flat / folder / "c1.png").read_bytes())
    expect(flat, 26, "C1", "c1", "letter case")


def test_a_rater_who_copies_the_label_is_named(flat):
    for rater in ("copyist", "other"):
        (flat / f"labels_{rater}").mkdir()
        for path in (flat / "labels").iterdir():
            mask = Image.open(path)
            if rater == "other":
                mask = mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            mask.save(flat / f"labels_{rater}" / path.name)
    assert [f.text for f in check(flat).findings] == [
        "the rater 'copyist' equals the given label in 5 of 5 cases"
    ]


@pytest.mark.parametrize("quick", [False, True])
def test_sound_data_has_no_findings(flat, volumes, quick):
    assert check(flat, quick=quick).findings == ()
    assert check(volumes, quick=quick).findings == ()


def test_real_data_has_no_false_errors(real_data):
    for path in [*(real_data / "tiny_unit_test").iterdir(), *real_data.glob("msd_*")]:
        if path.is_dir():
            assert not check(path).errors


def test_all_faults_are_collected_and_the_gravest_decides(volumes, flat):
    (volumes / "images" / "v0.nii.gz").write_bytes(b"")
    (volumes / "images" / "v1.nii.gz").write_bytes((flat / "images" / "c0.png").read_bytes())
    (volumes / "labels" / "v2.nii.gz").write_bytes((volumes / "labels" / "v2.nii.gz").read_bytes()[:-20])
    result = check(volumes)
    assert [(f.case, f.row) for f in result.errors] == [("v0", 4), ("v2", 5), ("v1", 7)]
    with pytest.raises(DataError) as caught:
        result.raise_errors()
    assert "3 errors in 3 cases" in str(caught.value)
    from maskmend.config import DataConfig

    limited = check(volumes, data=DataConfig(max_voxels=100))
    with pytest.raises(ResourceError) as large:
        limited.raise_errors()
    assert large.value.exit_code == 4


def test_many_errors_are_told_in_ten_lines(flat):
    for number in range(30):
        for folder in ("images", "labels"):
            (flat / folder / f"broken{number}.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        check(flat).raise_errors()
    lines = str(caught.value).splitlines()
    assert sum("empty file" in line for line in lines) == 10
    assert "  and 50 more" in lines


def test_quick_reads_no_image_pixels(volumes, monkeypatch):
    from maskmend.data import images

    monkeypatch.setattr(images, "read_image", lambda *_, **__: pytest.fail("read pixels"))
    (volumes / "images" / "v0.nii.gz").write_bytes(b"")
    assert [f.row for f in check(volumes, quick=True).errors] == [4]


def test_fingerprint_against_independent_counts(volumes):
    import nibabel

    masks = [nibabel.load(p).get_fdata() for p in sorted((volumes / "labels").iterdir())]
    pictures = [nibabel.load(p).get_fdata() for p in sorted((volumes / "images").iterdir())]
    figures = check(volumes).fingerprint
    assert figures["cases"] == 5
    assert figures["shape"]["median"] == [10, 12, 14]
    assert figures["spacing_mm"]["max"] == [2, 1.5, 1]
    organ = figures["classes"][1]
    assert organ["volume_max"] == pytest.approx(3 * max(mask.sum() for mask in masks))
    assert organ["share"] == pytest.approx(sum(mask.mean() for mask in masks) / 5)
    assert figures["channels"][0]["maximum"] == pytest.approx(max(p.max() for p in pictures))
    json.dumps(check(volumes).to_json())


def test_table_survives_markup_in_names(flat, capsys):
    for folder in ("images", "labels"):
        (flat / folder / "[red]x.png").write_bytes(b"")
    Console(file=sys.stdout, width=200).print(check(flat).table())
    shown = capsys.readouterr().out
    assert "[red]x" in shown
    assert "2 errors, 0 warnings" in shown


def test_command_line_fix(volumes, tmp_path, capsys, snapshot):
    import nibabel

    path = volumes / "labels" / "v1.nii.gz"
    label = nibabel.load(path)
    affine = label.affine.copy()
    affine[1, 3] += 3
    nibabel.save(nibabel.Nifti1Image(label.dataobj, affine), path)
    before = snapshot(volumes)
    assert main(["check", str(volumes), "--json", "--fix", str(tmp_path / "out")]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["fix"]["fixed"][0]["file"] == "labels/v1.nii.gz"
    assert snapshot(volumes) == before
    assert main(["check", str(tmp_path / "out")]) == 0
