"""Voxels to be ignored do not count in an audit, whether a value of the mask says so or a mask of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.test_fanout import discs

from maskmend.audit.learnt import LEARNT, Learnt
from maskmend.audit.run import audit

WORST = "03"


def _read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Discs; one has a further part, a hole and a ragged edge, and `ignored.png` covers these."""
    root = discs(tmp_path / "data", count=12)
    mask, ignored = _read(root / "labels" / f"{WORST}.png"), np.zeros((48, 48), np.uint8)
    mask[2:7, 3:9] = 1
    mask[22:25, 22:26] = 0
    ignored[1:9, 1:11] = ignored[21:26, 21:27] = 200
    ignored[:, 30:] = 1
    mask[::2, 30:36] = 1
    Image.fromarray(mask).save(root / "labels" / f"{WORST}.png")
    Image.fromarray(ignored).save(tmp_path / "ignored.png")
    return root


def _audited(source: Path, out: Path, **side: Any) -> dict[str, Any]:
    (source / "maskmend.json").write_text(json.dumps({"labels": {"disc": 1}, **side}))
    return audit(source, out, probs=source / "probs")


def _findings(answer: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in answer["records"] if one["case"] == WORST)


def test_an_ignore_mask_says_what_an_ignore_value_says(source: Path, tmp_path: Path) -> None:
    bare = _findings(_audited(source, tmp_path / "bare"))
    assert {"extra part", "holes"} <= {one["check"] for one in bare["structure"]}
    ignored = _read(tmp_path / "ignored.png") > 0
    (source / "ignored.png").write_bytes((tmp_path / "ignored.png").read_bytes())
    file = _audited(source, tmp_path / "file", ignore_masks={WORST: "ignored.png"})
    given = _read(source / "labels" / f"{WORST}.png")
    Image.fromarray(np.where(ignored, np.uint8(9), given)).save(source / "labels" / f"{WORST}.png")
    value = _audited(source, tmp_path / "value", ignore=9)
    assert not {"extra part", "holes", "specks", "at the border"} & {
        one["check"] for one in _findings(file)["structure"]
    }
    for one, other in zip(file["records"], value["records"], strict=True):
        assert {**one, "suggested": None} == {**other, "suggested": None}
    volumes = [Learnt.read(tmp_path / name / LEARNT).volumes_mm3 for name in ("file", "value")]
    assert volumes[0] == volumes[1]
    assert volumes[0][WORST] == {"disc": float(((given == 1) & ~ignored).sum())}


def test_what_is_ignored_stays_as_it_was_drawn(source: Path, tmp_path: Path) -> None:
    """Of a mask that is drawn too large everywhere, the half that counts is mended."""
    given, ignored = _read(source / "labels" / "00.png"), np.zeros((48, 48), bool)
    ignored[:, 24:] = True
    Image.fromarray(ignored.astype(np.uint8)).save(source / "ignored.png")
    answer = _audited(source, tmp_path / "out", ignore_masks={"00": "ignored.png"})
    record = next(one for one in answer["records"] if one["case"] == "00")
    suggested = _read(tmp_path / "out" / record["suggested"])
    assert (suggested != given).any()
    assert (suggested == given)[ignored].all()
