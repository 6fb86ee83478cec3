"""docs/raters.md: its commands and programs run on the data it speaks of, and its figures agree with their tables."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "raters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- runnable: (\w+) -->\n```(\w+)\n(.*?)```", PAGE, re.DOTALL)
CROWD, RADIOLOGISTS = "bubil_cells_crowd_vs_expert", "lidc_nodule_masks_4raters_noimages"


def cells(data: Path, folder: Path) -> None:
    """Twelve small cells with all their masks."""
    shutil.copytree(data / "tiny_unit_test" / "multirater_2d", folder / "cells")


def nodules(data: Path, folder: Path) -> None:
    """Every sixtieth nodule; the table is whole."""
    source, target = data / RADIOLOGISTS, folder / "nodules"
    for part in sorted(source.glob("labels*")):
        (target / part.name).mkdir(parents=True)
        for file in sorted(part.iterdir())[::60]:
            shutil.copy(file, target / part.name)
    shutil.copy(source / "nodules.csv", target)


@pytest.mark.parametrize("number", range(3))
def test_what_the_page_shows_runs(tmp_path, real_data, number) -> None:
    assert [name for name, *_ in BLOCKS] == ["cells", "nodules", "nodules"]
    name, language, text = BLOCKS[number]
    {"cells": cells, "nodules": nodules}[name](real_data, tmp_path)
    command = tmp_path / "bin" / "maskmend"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m maskmend "$@"\n')
    command.chmod(0o755)
    run = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
    path = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}
    answer = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    out = tmp_path / (
        "radiologists_mm" if language == "python" else {"cells": "crowd"}.get(name, "radiologists")
    )
    assert (out / "raters.html").stat().st_size > 10_000
    if language == "python":
        assert answer.stdout.split()[1] == "mm"
    else:
        assert len(list((out / "consensus").iterdir())) == len(list((tmp_path / name / "labels").iterdir()))


def means(table: Path) -> dict[str, float]:
    """Column means of a table that came with the data."""
    rows = list(csv.DictReader(table.open()))
    numeric = [key for key, value in rows[0].items() if re.fullmatch(r"-?[\d.]+", value)]
    return {key: float(np.mean([float(row[key]) for row in rows])) for key in numeric}


def test_dice_with_the_experts_is_that_of_the_table(real_data) -> None:
    told = means(real_data / CROWD / "dice_vs_gold.csv")
    crowd = [told[f"dice_rater{k}"] for k in range(1, 8)]
    assert f"Dice of {min(crowd):.3f} to {max(crowd):.3f} with the experts" in PAGE
    assert f"There expert2 has a Dice of\n{told['dice_expert2']:.3f}" in PAGE
    others = sorted(told[f"dice_expert{k}"] for k in (1, 3))
    assert f"the others {others[0]:.2f} to {others[1]:.2f}" in PAGE


def test_the_radiologists_figures_are_those_of_the_table(real_data) -> None:
    low, high = re.findall(r"Pairs have a Dice of ([\d.]+) to ([\d.]+)", PAGE)[0]
    mean = means(real_data / RADIOLOGISTS / "nodules.csv")["mean_pairwise_dice"]
    assert float(low) < mean < float(high)


def test_pictures_are_small() -> None:
    for name in re.findall(r"\(pictures/(\S+)\)", PAGE):
        assert (ROOT / "docs" / "pictures" / name).stat().st_size < 200_000
