"""The audit's page: what it says is what the records hold, nothing breaks out of it, and 2,000 cases stay small."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.audit.conftest import decathlon, without_affine

from maskmend.audit import figures, thumbs
from maskmend.audit.files import by_id, case_files
from maskmend.audit.record import CaseRecord, ClassRecord, ComponentRecord, StructureFinding
from maskmend.audit.report import EMBEDDED_BYTES, write_audit_report
from maskmend.audit.selfcheck import weakness
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.images import write_image, write_label
from maskmend.errors import UsageError
from maskmend.report import Section, Table

NASTY = "c</script><img src=x onerror=alert(1)>&\"' ü\u2028"
LABELS = {"background": 0, "organ": 1, "core": 2}


class Page(HTMLParser):
    """What a browser would see: elements with attributes, text outside scripts, and scripts apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text: str) -> None:
        self.scripts.append(text) if self.cdata_elem == "script" else self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def record(case: str, priority: float = 0.5, **more: Any) -> CaseRecord:
    base = {
        "quality": 0.8, "quality_low": 0.7, "quality_high": 0.9, "flawed": 0.6, "wrong_voxels": 40.0,
        "wrong_share": 0.2, "kind": "over-drawn", "kind_probability": 0.75, "worst": (4, 6), "rater": "anna",
        "site": "north", "spacing_mm": (1.0, 1.0), "shape": (24, 30),
        "classes": (ClassRecord("organ", 90, 80, 0.8, 0.2, 0.5, "over-drawn"),),
    }  # fmt: skip
    return CaseRecord(case, priority, **(base | more))


def disk_case(root: Path, name: str, shape: tuple[int, ...], seed: int = 0) -> Case:
    """An image and a mask on disk."""
    rng = np.random.default_rng(seed)
    suffix = ".png" if len(shape) == 2 else ".nii.gz"
    geometry = Geometry(shape, (1.0,) * len(shape), np.eye(4) if len(shape) == 3 else None)
    paths = [root / folder / f"{name}{suffix}" for folder in ("images", "labels")]
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(n // 3, n // 2) for n in shape)] = 1
    write_image(paths[0], rng.integers(0, 255, (1, *shape)).astype(np.uint8), geometry)
    write_label(paths[1], mask, geometry)
    return Case(name, (paths[0],), paths[1])


def dataset(root: Path, *cases: Case) -> Dataset:
    return Dataset(root, "folders", cases, LABELS)


def test_the_page_holds_what_the_records_hold(tmp_path):
    part = ComponentRecord("core", False, 17, 0.9, (3, 5), 0.1, 0.0, 0.4, 1.0, "missing object")
    well = replace(part, present=True, probability=0.0, quality=0.99, kind="sound")
    alone = replace(well, name="organ", quality=0.5, kind="shifted")  # the class says it already
    finding = StructureFinding("holes", "organ", "2 holes, 5 voxels in all", 0.5, (2, 7))
    weak = StructureFinding("at the border", "organ", "touches", 0.2)
    records = [
        record("a", 0.1, kind="sound", rater="ben"),
        record("b", 0.9, components=(part, alone, well), structure=(weak, finding), in_sample=True),
        record("c", 0.5),
    ]
    page = Page(write_audit_report(tmp_path, dataset(tmp_path), records, {}).read_text("utf-8"))
    rows = page.data["records"]
    assert [row["case"] for row in rows] == ["b", "c", "a"]  # worst first
    assert [row["rank"] for row in rows] == [0, 1, 2]
    first = rows[0]
    assert first["place"] == "x 6, y 4"  # as viewers count
    assert first["place_from_1"] == "x 7, y 5"  # but ITK-SNAP
    assert first["grid"] == "30 × 24"
    assert first["parts"] == [
        {
            "name": "core", "present": False, "voxels": 17, "dice": 0.1, "low": 0.0, "high": 0.4,
            "kind": "missing object", "place": "x 5, y 3",
        }
    ]  # fmt: skip
    assert [one["check"] for one in first["findings"]] == ["holes", "at the border"]
    assert first["findings"][0]["place"] == "x 7, y 2"
    assert first["insample"] is True
    assert page.data["raters"] == ["anna", "ben"]
    assert page.data["kinds"] == ["over-drawn", "sound"]
    assert "About 2 of 3 masks" in page.text  # 3 * 0.6, rounded
    assert "Who draws too large" in page.text


def test_nothing_breaks_out_of_the_page(tmp_path):
    texts = {"rater": NASTY, "site": NASTY, "group": NASTY}
    finding = StructureFinding(NASTY, NASTY, NASTY, 0.5)
    records = [
        record(
            NASTY,
            **texts,
            structure=(finding,),
            classes=(ClassRecord(NASTY, 9, 9, 0.5, 0.1, 0.2, "mixed"),) * 3,
        ),
        record("other"),
    ]
    facts = {"title": NASTY, "notes": [NASTY], NASTY: NASTY, "settings": NASTY, "confusion": {NASTY: {NASTY: 1.0}},
             "sections": [Section(NASTY, [NASTY], Table([NASTY], [[NASTY]]), code=NASTY)]}  # fmt: skip
    html = write_audit_report(
        tmp_path, replace(dataset(tmp_path), labels={NASTY: 1, "b": 2}), records, facts
    ).read_text("utf-8")
    page = Page(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert page.data["records"][0]["case"] == NASTY
    assert "\u2028" not in page.scripts[0]
    assert page.text.count(NASTY.strip()[:20]) >= 8  # shown as text


def test_the_page_loads_nothing_and_its_script_is_the_one_allowed(tmp_path):
    records = [record(str(i)) for i in range(3)]
    html = write_audit_report(tmp_path, dataset(tmp_path), records, {}).read_text("utf-8")
    page = Page(html)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"https?://", html.replace("http-equiv", ""))
    assert "innerHTML" not in page.scripts[1]
    assert "\n<script>" in html  # the hash is of the very bytes between the tags
    between = re.search(r"<script>(.*?)</script>", html, re.S)
    assert between is not None
    assert between.group(1) == page.scripts[1]


@pytest.mark.parametrize(("shape", "rows"), [((24, 30), 1), ((12, 14, 16), 3)])
def test_pictures_are_drawn_once_and_again_when_something_changed(tmp_path, monkeypatch, shape, rows):
    case = disk_case(tmp_path, "p 1 ü", shape)
    told = record(case.id, worst=tuple(n // 2 for n in shape), shape=shape, spacing_mm=(1.0,) * len(shape))
    write_audit_report(tmp_path, dataset(tmp_path, case), [told], {})
    (first,) = (tmp_path / "thumbs").iterdir()
    picture = Image.open(first)
    assert picture.width / picture.height == pytest.approx(4 / rows, rel=0.02)
    drawn: list[str] = []
    real = thumbs._picture
    monkeypatch.setattr(thumbs, "_picture", lambda *args: drawn.append(args[0].case) or real(*args))
    write_audit_report(tmp_path, dataset(tmp_path, case), [told], {})
    assert drawn == []
    assert case.label is not None
    write_label(case.label, np.ones(shape, np.uint8), Geometry(shape, (1.0,) * len(shape)))
    write_audit_report(tmp_path, dataset(tmp_path, case), [told], {})
    assert drawn == [case.id]
    (second,) = (tmp_path / "thumbs").iterdir()  # the old one is gone
    assert second != first


@pytest.mark.parametrize(("level", "bright"), [(0, False), (1, False), (255, True)])
def test_a_map_of_hardly_any_noise_is_not_drawn_as_the_worst(tmp_path, level, bright):
    """1 of 255 is not the probability 1, even where the map holds nothing above it."""
    case = disk_case(tmp_path, "p1", (24, 30))
    noise = np.full((1, 24, 30), level, np.uint8)
    write_image(tmp_path / "noise" / "p1.png", noise, Geometry((24, 30), (1.0, 1.0)))
    told = record("p1", noise_map="noise/p1.png")
    found = dataset(tmp_path, case)
    files = case_files(told, tmp_path, found, by_id(found))
    one = thumbs.draw_case(told, files, tmp_path, LABELS, 60_000)
    assert one.path is not None
    pixels = np.asarray(Image.open(one.path)).astype(int)
    image, heat = pixels[:, : one.tile], pixels[:, -one.tile :]
    assert (np.abs(image - heat).mean() > 20) == bright


def test_few_pictures_lie_in_the_page_and_many_beside_it(tmp_path, monkeypatch):
    case = disk_case(tmp_path, "p1", (24, 30))
    page = Page(write_audit_report(tmp_path, dataset(tmp_path, case), [record("p1")], {}).read_text("utf-8"))
    source = page.data["records"][0]["picture"]
    data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).format == "JPEG"
    monkeypatch.setattr("maskmend.audit.report.EMBEDDED_BYTES", 10)
    page = Page(write_audit_report(tmp_path, dataset(tmp_path, case), [record("p1")], {}).read_text("utf-8"))
    source = page.data["records"][0]["picture"]
    assert (tmp_path / source).is_file()
    assert re.fullmatch(r"thumbs/[\w-]+\.jpg", source)


def test_a_case_whose_files_are_gone_has_no_picture_and_no_harm(tmp_path):
    case = disk_case(tmp_path, "p1", (24, 30))
    broken = replace(case, id="p2", images=(tmp_path / "gone.png",))
    other = replace(disk_case(tmp_path, "p3", (9, 9)), id="p3")
    assert case.label is not None
    torn = replace(case, id="p4", label=other.label)
    cases = (case, broken, torn)
    records = [record(one.id) for one in cases]
    page = Page(write_audit_report(tmp_path, dataset(tmp_path, *cases), records, {}).read_text("utf-8"))
    rows = {row["case"]: row for row in page.data["records"]}
    assert rows["p1"]["picture"]
    assert rows["p2"]["picture"] == ""
    assert "gone.png" in rows["p2"]["problem"]
    assert "shape (9, 9)" in rows["p4"]["problem"]


def test_files_of_four_axes_have_pictures(tmp_path):
    found = decathlon(tmp_path)
    told = record("p", worst=(4, 5, 6), shape=(8, 10, 12), spacing_mm=(2.0, 1.5, 1.0))
    (row,) = Page(write_audit_report(tmp_path / "out", found, [told], {}).read_text("utf-8")).data["records"]
    assert row["problem"] == ""
    data = base64.b64decode(row["picture"].removeprefix("data:image/jpeg;base64,"))
    assert np.asarray(Image.open(io.BytesIO(data))).std() > 10


def test_files_without_an_affine_have_pictures_where_their_spacing_is_given(tmp_path):
    case = disk_case(tmp_path, "p", (8, 10, 12))
    for path in (*case.images, case.label):
        without_affine(path)
    found = dataset(tmp_path, case)
    told = record("p", worst=(4, 5, 6), shape=(8, 10, 12), spacing_mm=(2.0, 1.5, 1.0))
    problems, pictures = [], []
    for spacing_mm in (None, (2.0, 1.5, 1.0), (2.0, 1.5, 3.0)):
        page = write_audit_report(tmp_path / "out", replace(found, spacing_mm=spacing_mm), [told], {})
        (row,) = Page(page.read_text("utf-8")).data["records"]
        problems.append(row["problem"])
        pictures.append(row["picture"])
    assert "zero" in problems[0]  # the fault that the override is for
    assert problems[1:] == ["", ""]
    assert pictures[1]


def test_two_thousand_cases_stay_below_sixty_megabytes(tmp_path):
    """Pictures of 3-D noise, the hardest to compress: 40 of them say what 2,000 take."""
    case = disk_case(tmp_path, "p1", (40, 44, 42))
    found = dataset(tmp_path, case)
    files = case_files(record("p1"), tmp_path, found, by_id(found))
    told = record("p1", worst=(20, 20, 20), shape=(40, 44, 42), spacing_mm=(1.0,) * 3)
    most = thumbs.bytes_per_picture(2000)
    one = thumbs.draw_case(told, files, tmp_path, LABELS, most)
    assert one.path is not None
    assert 2000 * one.path.stat().st_size < 50e6
    gone = str(tmp_path / "a folder with a long name" / "gone.nii.gz")
    told = replace(told, image=gone, label=gone, suggested=gone, noise_map=gone)
    commands = [replace(told, case=f"patient_{i:05d}_with_a_long_name") for i in range(2000)]
    page = write_audit_report(tmp_path / "out", dataset(tmp_path), commands, {})
    assert "itksnap" in Page(page.read_text("utf-8")).data["records"][1999]["commands"][0][1]
    assert page.stat().st_size + 4 / 3 * EMBEDDED_BYTES < 60e6  # whether or not the pictures lie in the page


def test_no_records_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no cases"):
        write_audit_report(tmp_path, dataset(tmp_path), [], {})


# ---- figures of the data set ------------------------------------------------------------------------------------


def test_figures_of_the_data_set_by_hand():
    records = [
        record("a", 0.9, wrong_voxels=60, wrong_share=0.6, kind="shifted"),
        record("b", 0.5, wrong_voxels=30, wrong_share=0.3),
        record("c", 0.1, wrong_voxels=10, wrong_share=0.1, kind="sound"),
    ]
    rate = figures.noise_rate(records)
    assert rate.value == pytest.approx(100 / 300)
    assert rate.low < rate.value < rate.high
    assert figures.budget_curve(records).tolist() == pytest.approx([0, 0.6, 0.9, 1])
    assert figures.budget_curve(records[::-1]).tolist() == pytest.approx([0, 0.6, 0.9, 1])
    assert figures.budget_steps(figures.budget_curve(records)) == [
        (1, pytest.approx(0.6)),
        (2, pytest.approx(0.9)),
    ]
    assert [(one.kind, one.cases, round(one.wrong_share, 2)) for one in figures.kinds(records)] == [
        ("shifted", 1, 0.6), ("over-drawn", 1, 0.3), ("sound", 1, 0.1),
    ]  # fmt: skip
    assert figures.histogram([0.52, 0.57, 1.0], bins=10) == [
        (0.5, pytest.approx(0.6), 2), (pytest.approx(0.6), pytest.approx(0.7), 0), (pytest.approx(0.7), 0.8, 0),
        (0.8, 0.9, 0), (0.9, 1.0, 1),
    ]  # fmt: skip


def test_offsets_by_class_rater_and_site():
    def drawn(offset: float | None) -> tuple[ClassRecord, ...]:
        return (ClassRecord("organ", 100, 100, 0.9, 0.1, offset, "mixed"),)

    records = [record(f"a{i}", rater="anna", classes=drawn(1 + 0.1 * i)) for i in range(5)]
    records += [record(f"b{i}", rater="ben", classes=drawn(-0.5)) for i in range(5)]
    records += [record("none", rater="ben", classes=drawn(None))]
    found = {(one.what, one.name): one.offset_mm for one in figures.groups(records)}
    assert set(found) == {("class", "organ"), ("rater", "anna"), ("rater", "ben")}  # one site says nothing
    anna, ben = found["rater", "anna"], found["rater", "ben"]
    assert anna is not None
    assert ben is not None
    assert anna.value == pytest.approx(1.2)
    assert anna.low <= 1.2 <= anna.high
    assert (ben.value, ben.n) == (pytest.approx(-0.5), 5)


def test_one_wrong_file_makes_no_bias():
    offsets = [0.1] * 20 + [40.0]
    records = [
        record(f"c{i}", classes=(ClassRecord("organ", 100, 100, 0.9, 0.1, offset, "mixed"),))
        for i, offset in enumerate(offsets)
    ]
    (found,) = figures.groups(records)
    assert found.offset_mm is not None
    assert found.offset_mm.value == pytest.approx(0.1)


def test_what_the_audit_knows_of_itself_is_told(tmp_path):
    facts = {
        "flawed": {"expected": 12.3, "low": 8.0, "high": 16.0}, "wrong_share": 0.0712, "in_sample": True,
        "class_noise": {"organ": {"wrong_of_given": 0.041, "missing_of_true": 0.023}},
        "check": {"masks": 140, "auroc": 0.93, "dice_correlation": 0.81, "kind_accuracy": None, "flawed_dice": 0.7,
                  "mended_dice": 0.9, "sound_mended_dice": 0.98, "expected_wrong": 1500, "true_wrong": 1600},
        "method": "pint", "probabilities": None,
    }  # fmt: skip
    told = record("a", remark="fits case b")
    others = [record(str(number)) for number in range(13)]
    page = Page(write_audit_report(tmp_path, dataset(tmp_path), [told, *others], facts).read_text("utf-8"))
    wanted = [
        "About 12 of 14 masks", "90 % interval 8 to 16", "7.1 %", "has learnt from these masks", "organ 4.1 % 2.3 %",
        "ranks above a sound one 93 %", "named rightly –", "1,500 / 1,600", "method pint",
    ]  # fmt: skip
    for text in wanted:
        assert text in page.text
    assert "probabilities" not in page.text.split("How this audit was made")[1]
    summaries = {one["case"]: one["summary"] for one in page.data["records"]}
    assert [case for case, text in summaries.items() if "Remark: fits case b." in text] == ["a"]


def test_models_that_fail_their_exam_give_an_order_and_no_number(tmp_path):
    check = {"masks": 140, "auroc": 0.71}
    assert weakness({"auroc": 0.81}) == ""
    assert "could be examined" in weakness({})
    facts = {
        "flawed": {"expected": 0.4, "low": 0, "high": 1},
        "wrong_share": 0.001,
        "warning": weakness(check),
    }
    facts["in_sample"] = True
    records = [record("a"), record("b")]
    page = Page(write_audit_report(tmp_path, dataset(tmp_path), records, facts).read_text("utf-8"))
    for text in (
        "too weak to count errors",
        "in 71 % of pairs only",
        "not known",
        "has learnt from these masks",
    ):
        assert text in page.text
    for text in ("are expected to have an error", "0.1 %", "90 % interval 0 to 1"):
        assert text not in page.text


def test_how_many_masks_the_model_has_learnt_is_told(tmp_path):
    for seen, wanted in ((4, "has learnt from these masks"), (3, "has learnt from 3 of these masks")):
        records = [replace(record(str(number)), in_sample=number < seen) for number in range(4)]
        file = write_audit_report(tmp_path / str(seen), dataset(tmp_path), records, {"in_sample": True})
        assert wanted in Page(file.read_text("utf-8")).text


def test_a_few_masks_are_not_made_a_distribution_of(tmp_path):
    """One has a probability of its own; from five on there are charts and an effort to plan."""
    words = ("How good the given masks are", "Re-drawing", "median estimated Dice")
    for count, wanted in (
        (1, ("has an error worth mending with a probability of 12 %", "1 mask looked at", "1.7 %")),
        (4, ("About 2 of 4 masks", "4 masks looked at", "lowest estimated Dice")),
        (5, ("About 2 of 5 masks", "5 masks looked at", *words)),
    ):
        records = [replace(record(str(number)), flawed=0.12) for number in range(count)]
        facts = {
            "flawed": {"expected": 2, "low": 1, "high": 3},
            "wrong_share": 0.017,
            "like": "runs/first audit",
        }
        file = write_audit_report(tmp_path / str(count), dataset(tmp_path), records, facts)
        page = Page(file.read_text("utf-8"))
        assert "Judged like the audit in runs/first audit" in page.text
        for text in wanted:
            assert text in page.text
        for text in words if count < 5 else ():
            assert text not in page.text


def test_confusion_is_shown_in_shares_of_the_given_class(tmp_path):
    facts = {"confusion": {"organ": {"organ": 90.0, "core": 10.0}, "core": {"core": 5.0}}}
    page = Page(write_audit_report(tmp_path, dataset(tmp_path), [record("a")], facts).read_text("utf-8"))
    assert "given organ core organ 90.0 % 10.0 % core 0.0 % 100 %" in page.text
