"""Who drew a mask, by a column of a CSV or in the side file: the audit says by how much each draws too large."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from maskmend.audit.run import audit
from maskmend.config import load
from maskmend.data.dataset import find_cases
from maskmend.noise.dataset import corrupt_dataset

RATERS = ("anna", "ben", "cleo")
WIDER = {"anna": 0, "ben": 3, "cleo": 0}  # pixels


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Discs by three raters, of whom one draws them too large; probabilities of models that do not know."""
    root = tmp_path / "data"
    for part in ("images", "labels", "probs"):
        (root / part).mkdir(parents=True)
    for number in range(30):
        rng = np.random.default_rng(number)
        away = np.hypot(*(np.ogrid[:64, :64][axis] - rng.uniform(26, 38) for axis in (0, 1)))
        radius = rng.uniform(10, 14)
        soft = 1 / (1 + np.exp(-(radius - away) / 0.7))
        label = away < radius + WIDER[RATERS[number % 3]] + 0.3 * rng.standard_normal()
        image = ndimage.gaussian_filter(120.0 * (away < radius), 0.7) + rng.normal(40, 6, label.shape)
        name = f"case{number:02d}"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / f"images/{name}.png")
        Image.fromarray(label.astype(np.uint8)).save(root / f"labels/{name}.png")
        np.savez(root / f"probs/{name}.npz", probabilities=np.stack([1 - soft, soft]))
    return root


def by_csv(root: Path) -> Path:
    with (root / "cases.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "Rater", "site"])
        for n in range(30):
            name = f"case{n:02d}.png"
            table.writerow([f"images/{name}", f"labels/{name}", RATERS[n % 3], f"site {n % 2}"])
    return root / "cases.csv"


def by_side_file(root: Path) -> Path:
    drawn_by = {f"case{n:02d}": RATERS[n % 3] for n in range(30)}
    (root / "maskmend.json").write_text(json.dumps({"drawn_by": drawn_by}))
    return root


@pytest.mark.parametrize("told", [by_csv, by_side_file])
def test_the_audit_says_who_draws_too_large(drawn: Path, tmp_path: Path, told) -> None:
    answer = audit(told(drawn), tmp_path / "out", load(None, []), probs=drawn / "probs")
    assert {one["case"]: one["rater"] for one in answer["records"]} == {
        f"case{n:02d}": RATERS[n % 3] for n in range(30)
    }
    bias = {name: one["class_1"]["mean"] for name, one in answer["facts"]["bias_mm_by_rater"].items()}
    assert bias["ben"] == pytest.approx(3, abs=0.25)
    assert [bias["anna"], bias["cleo"]] == pytest.approx([0, 0], abs=0.25)
    assert "Who draws too large" in (tmp_path / "out" / "report.html").read_text("utf-8")
    rows = list(csv.DictReader((tmp_path / "out" / "parts.csv").open()))
    assert len(rows) == 30  # one disc each
    assert {row["case"] for row in rows[:8]} <= {
        f"case{n:02d}" for n in range(1, 30, 3)
    }  # the worst are ben's
    kinds = {row["case"]: row["kind"] for row in rows}
    assert kinds == {one["case"]: one["classes"][0]["kind"] for one in answer["records"]}


def test_a_flawed_copy_still_knows_who_drew(drawn: Path, tmp_path: Path) -> None:
    before = find_cases(by_csv(drawn))
    corrupt_dataset(before, tmp_path / "copy", rate=0.2, kind="dilate")
    after = find_cases(tmp_path / "copy")
    assert [case.rater for case in after.cases] == [case.rater for case in before.cases] == list(RATERS) * 10


def test_masks_of_one_of_several_raters_are_that_ones(drawn: Path) -> None:
    """Whoever drew the given masks, `data.rater` takes those of another."""
    (drawn / "labels_dora").symlink_to(drawn / "labels")
    root = by_side_file(drawn)
    assert {case.rater for case in find_cases(root, rater="dora").cases} == {"dora"}
    assert {case.rater for case in find_cases(root).cases} == set(RATERS)
