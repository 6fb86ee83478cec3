"""Shared fixtures: real data when it is there, one thread so that shared machines stay usable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real test data, or skip with the reason."""
    root = Path(__file__).parents[1]
    path = (root / os.environ.get("MASKMEND_TEST_DATA", "../shared/data")).resolve()
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set MASKMEND_TEST_DATA")
    return path
