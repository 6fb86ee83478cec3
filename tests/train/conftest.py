"""A small data set of phantoms and the call that trains on it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskmend.config import load
from maskmend.data.phantom import make_phantom
from maskmend.train.loop import _Training
from maskmend.train.run import train
from maskmend.train.run_folder import Run

SMALL = [
    "device=cpu", "train.steps=16", "train.batch=2", "train.patch=[32, 32]", "train.threads=1",
    "train.picture_every=1000", "train.checkpoint_every=5", "network.options={base: 4, limit: 8}",
]  # fmt: skip


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 2-D training cases of 32 x 32: an epoch of a batch of 2 is 4 steps."""
    return make_phantom(tmp_path_factory.mktemp("phantoms"), train=8, test=0, shape=(32, 32))


@pytest.fixture
def small_train(phantoms: Path) -> Callable[..., Run]:
    """`train` with settings that take a second or two."""

    def run(out: Path, *overrides: str, data: Path | None = None, **keywords: Any) -> Run:
        return train(data or phantoms, out, load(None, [*SMALL, *overrides]), **keywords)

    return run


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Do something once, right after a step has been counted."""

    def arrange(step: int, what: Callable[[], None]) -> None:
        original, left = _Training._one_step, [what]

        def one_step(self: _Training, batch: Any) -> None:
            original(self, batch)
            if self.step == step and left:
                left.pop()()

        monkeypatch.setattr(_Training, "_one_step", one_step)

    return arrange


def send_sigterm() -> None:
    """As a batch system does before it takes the machine away."""
    os.kill(os.getpid(), signal.SIGTERM)
