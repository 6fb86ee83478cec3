"""Tables in a terminal of 80 columns: nothing that the user came for is cut off."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmend.answers import print_rich
from maskmend.audit.overview import worst_table
from maskmend.cli import main

LONG = "patient_007_left_ventricle_short_axis_endocardium_frame_0042"


class Terminal(io.StringIO):
    """Text that is shown, not piped."""

    def isatty(self) -> bool:
        return True

    def getvalue(self) -> str:
        """Without colours and bold letters."""
        return re.sub(r"\x1b\[[0-9;]*m", "", super().getvalue())


def shown(monkeypatch: pytest.MonkeyPatch, columns: int, *words: str) -> str:
    """What a command prints in a terminal that wide, or below 1, into a pipe."""
    screen = Terminal() if columns > 0 else io.StringIO()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", screen)
        main(words)
    assert "…" not in screen.getvalue()
    return screen.getvalue()


def joined(text: str, column: int) -> str:
    """The text of one column of a framed table, put together again where it was folded."""
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    return "".join(row[column].strip() for row in rows if len(row) > column)


def save(path: Path, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label.astype(np.uint8)).save(path)


@pytest.fixture
def scored(tmp_path: Path) -> tuple[str, str]:
    """Predictions and references of two classes: the second is missed in one of three cases."""
    for number in range(3):
        label = np.zeros((24, 24))
        label[4:16, 4:16] = 1
        label[17:20, 17:20] = 2
        save(tmp_path / "ref" / f"{number}.png", label)
        label[4:6] = 0
        label[label == 2] = 2 if number else 0
        save(tmp_path / "pred" / f"{number}.png", label)
    return str(tmp_path / "pred"), str(tmp_path / "ref")


def test_scores_in_80_columns(monkeypatch: pytest.MonkeyPatch, scored: tuple[str, str]) -> None:
    text = shown(monkeypatch, 80, "evaluate", *scored)
    lines = [re.split(r" {2,}", line) for line in text.splitlines()]
    assert max(map(len, text.splitlines())) <= 80
    # 12 x 12 pixels without two rows of 12: Dice 2 * 120 / (144 + 120), the same in every case.
    dice = next(line for line in lines if line[:2] == ["class_1", "Dice"])
    assert dice[2:] == ["0.909", "0.909 to 0.909", "3", "0", "0", "0"]
    second = next(line for line in lines if line[:2] == ["class_2", "Dice"])
    assert second[2:] == ["0.667", "0.000 to 1.000", "3", "0", "1", "0"]
    # Of the second class nothing is left in one case of three.
    assert re.search(r"^class_2 +volume +-33.3% +-100.0 to \+0.0% ", text, re.MULTILINE)
    assert sum(line.startswith("mean of classes") for line in text.splitlines()) == 5


@pytest.mark.parametrize("columns", [170, 0])
def test_scores_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, scored: tuple[str, str], columns: int
) -> None:
    """A line per class, as before: also in pipes, where 160 columns are taken."""
    lines = shown(monkeypatch, columns, "evaluate", *scored).splitlines()
    (row,) = [line for line in lines if line.startswith("│ class_1")]
    assert row.count("│") == 12


def test_methods_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskmend.methods import names

    for columns in (80, 120):
        lines = shown(monkeypatch, columns, "methods").splitlines()
        firsts = [line.split()[0] for line in lines if line[:1].strip()]
        assert set(names()) <= set(firsts)
        assert ("family" in lines[0]) == (columns == 120)


def test_names_of_faulty_files_in_80_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save(tmp_path / "images" / f"{LONG}.png", np.random.default_rng(0).integers(0, 255, (32, 32)))
    save(tmp_path / "labels" / f"{LONG}.png", np.ones((32, 30)))
    text = shown(monkeypatch, 80, "check", str(tmp_path))
    assert LONG in joined(text, 2)
    assert f"labels/{LONG}.png" in joined(text, 3)


def test_cases_in_dispute_in_80_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, rater in enumerate("ab"):
        label = np.zeros((24, 24))
        label[4 : 16 + number, 4:16] = 1
        save(tmp_path / f"labels_{rater}" / f"{LONG}.png", label)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    shown(monkeypatch, 80, "raters", str(tmp_path), "-o", str(tmp_path / "out"))
    assert "…" not in screen.getvalue()
    assert LONG in joined(screen.getvalue(), 1)


def test_worst_cases_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    record: dict[str, Any] = {"case": LONG, "flawed": 0.9, "quality": 0.5, "quality_low": 0.4}
    record |= {"quality_high": 0.6, "wrong_voxels": 123456, "kind": "boundary too large", "worst": (1, 2, 3)}
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    print_rich(worst_table([record]), narrow=worst_table([record], brief=True))
    assert "…" not in screen.getvalue()
    assert joined(screen.getvalue(), 1) == LONG


def test_nothing_but_a_long_name_is_broken_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds and places of an ordinary case stand in one piece."""
    record: dict[str, Any] = {"case": "hippocampus_144", "flawed": 0.9, "quality": 0.5, "quality_low": 0.4}
    record |= {
        "quality_high": 0.6,
        "wrong_voxels": 1234,
        "kind": "wrong slice range",
        "worst": (104, 35, 112),
    }
    monkeypatch.setenv("TERM", "xterm")
    for columns in (80, 120):
        screen = Terminal()
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "stdout", screen)
        print_rich(worst_table([record]), narrow=worst_table([record], brief=True))
        (row,) = [line for line in screen.getvalue().splitlines() if "hippocampus_144" in line]
        assert "wrong slice range" in row
        assert "104, 35, 112" in row
        assert ("0.40 to 0.60" in row) == (columns == 120)
