"""Processes that train together part before they end."""

from __future__ import annotations

import atexit
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from maskmend.train import engine


def note_the_end(fabric: Fabric, folder: Path) -> None:
    """Sum a one of each process; as it ends, note whether the process still belongs to the group."""
    total = int(engine.summed(fabric, torch.ones(1)).item())
    file = folder / f"{fabric.global_rank}.txt"
    atexit.register(lambda: file.write_text(f"{total} {torch.distributed.is_initialized()}"))


@pytest.mark.slow
def test_no_thread_of_the_group_outlives_the_work(tmp_path: Path) -> None:
    """A process that ends with them aborts now and then, and a finished training counts as failed."""
    engine.launch(note_the_end, tmp_path, device="cpu", precision="32", processes=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["2 False", "2 False"]
