"""Foreign probabilities: what is taken, as it is, and what is refused, wherever in the array it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskmend.audit import sources
from maskmend.audit.sources import ProbsFolder
from maskmend.data.case import Case, Dataset
from maskmend.errors import DataError

SHAPE = (7, 11)
CASE = Case("a", ())


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays are checked in several parts, the last one shorter."""
    monkeypatch.setattr(sources, "AT_ONCE", 10)


@pytest.fixture
def probs() -> np.ndarray:
    raw = np.random.default_rng(0).random((3, *SHAPE))
    return raw / raw.sum(axis=0)


def read(folder: Path, array: np.ndarray) -> np.ndarray:
    np.savez(folder / "a.npz", probabilities=array)
    dataset = Dataset(folder, "folders", (CASE,), labels={"background": 0, "one": 1, "two": 2})
    return ProbsFolder(folder, dataset)(CASE, np.zeros(SHAPE, np.uint8))


@pytest.mark.parametrize("dtype", ["f2", ">f2", "f4", ">f4", "f8"])
def test_every_number_is_taken_as_it_is(tmp_path: Path, probs: np.ndarray, dtype: str) -> None:
    given = probs.astype(dtype)
    found = read(tmp_path, given)
    assert found.dtype == np.float32
    assert np.array_equal(found, given.astype(np.float32))


def test_fortran_order_and_missing_background(tmp_path: Path, probs: np.ndarray) -> None:
    assert np.array_equal(read(tmp_path, np.asfortranarray(probs)), probs.astype(np.float32))
    assert np.allclose(read(tmp_path, probs[1:]), probs, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda p, at: p[0].__setitem__(at, np.nan), "NaN or infinite"),
        (lambda p, at: p[2].__setitem__(at, np.inf), "NaN or infinite"),
        (lambda p, at: p[2].__setitem__(at, -np.inf), "NaN or infinite"),
        (lambda p, at: p[1].__setitem__(at, -2.5), "values from -2.5 to"),
        (lambda p, at: p[1].__setitem__(at, 40.0), "to 40 are no probabilities"),
        (lambda p, at: [one.__setitem__(at, 0.0) for one in p], r"add up to 0 \.\.\. 1"),
        (lambda p, at: [one.__setitem__(at, 0.5) for one in p], r"add up to .* \.\.\. 1\.5"),
    ],
)
@pytest.mark.parametrize("at", [(0, 0), (3, 5), (6, 10)])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_one_bad_voxel_is_refused(
    tmp_path: Path, probs: np.ndarray, spoil: Callable[..., object], text: str, at: tuple[int, int], dtype: str
) -> None:  # fmt: skip
    spoil(probs, at)
    with pytest.raises(DataError, match=text):
        read(tmp_path, probs.astype(dtype))
