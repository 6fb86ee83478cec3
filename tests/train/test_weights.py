"""Weights that break between two checks of the loss must not be stored over good ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskmend.errors import DataError
from maskmend.train import checkpoint

METHOD = """
import torch
from maskmend.methods.supervised import Supervised

class Breaks(Supervised):
    \"\"\"Its weights break after the step at which a state is due; no loss ever shows it.\"\"\"
    steps = 0
    def after_step(self, progress):
        super().after_step(progress)
        Breaks.steps += 1
        if Breaks.steps == 10:
            with torch.no_grad():
                next(self.parameters()).view(-1)[0] = float(VALUE)
"""


@pytest.mark.parametrize("value", ["'nan'", "'inf'"])
def test_a_good_state_outlives_broken_weights(
    small_train: Callable[..., object], tmp_path: Path, value: str
) -> None:
    file = tmp_path / "breaks.py"
    file.write_text(METHOD.replace("VALUE", value))
    with pytest.raises(DataError, match="weights are NaN or infinite after step 10"):
        small_train(tmp_path / "run", f"method.name={file}")
    state = checkpoint.load(tmp_path / "run")
    assert state is not None
    assert state["step"] == 5, "the state before is there"
    assert all(torch.isfinite(one).all() for one in state["method"].values())
    assert not (tmp_path / "run" / "model.safetensors").exists()
