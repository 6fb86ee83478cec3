"""What attacks share: a trap that leaves a mark when it is executed, a run folder and a small data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class Trap:
    """A pickle of this runs a command that creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    """The test fails when its mark exists in the end."""
    one = Trap(tmp_path / "the trap was sprung")
    yield one
    assert not one.mark.exists(), "foreign code was executed"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """As `maskmend train` leaves it."""
    from fuzz_targets import make_run

    return make_run(tmp_path / "run")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve grey images with labels."""
    root = tmp_path / "data"
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for number in range(12):
        rng = np.random.default_rng(number)
        mask = np.zeros((12, 10), np.uint8)
        mask[3:8, 2 + number % 3 : 7] = 1
        Image.fromarray((90 * mask + rng.integers(0, 60, mask.shape)).astype(np.uint8)).save(
            root / "images" / f"c{number:02d}.png"
        )
        Image.fromarray(mask).save(root / "labels" / f"c{number:02d}.png")
    return root


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes | None]]:
    """Everything below a folder, links not followed."""

    def take(root: Path) -> dict[str, bytes | None]:
        return {
            str(path.relative_to(root)): path.read_bytes()
            if path.is_file() and not path.is_symlink()
            else None
            for path in sorted(root.rglob("*"))
        }

    return take
