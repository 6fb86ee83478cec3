"""Critical differences against Demsar's own example and table; groups by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from maskmend.benchmark.ranks import cliques, critical_difference, friedman, ranks_of

# Demsar, JMLR 7 (2006), table 5 (a): critical values of the two-tailed Nemenyi test, 5 %.
Q = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize("methods", Q)
def test_critical_values_are_demsars(methods: int) -> None:
    expected = Q[methods] * math.sqrt(methods * (methods + 1) / (6 * 12))
    assert critical_difference(methods, 12) == pytest.approx(expected, abs=2e-3)


def test_demsars_example() -> None:
    """Section 3.2.2: four classifiers on 14 data sets, CD = 1.25."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_undefined_for_one() -> None:
    assert math.isnan(critical_difference(1, 10))
    assert math.isnan(critical_difference(5, 1))
    assert math.isnan(friedman(np.ones((4, 2))))
    assert math.isnan(friedman(np.ones((1, 5))))
    assert friedman(np.full((4, 3), 2.0)) == 1


def test_demsars_friedman_example() -> None:
    """Section 3.2.2: mean ranks 3.143, 2.000, 2.893, 1.964 of 14 give chi-square 9.28 with 3 degrees of freedom."""
    auc = np.array([
        [.763, .768, .771, .798], [.599, .591, .590, .569], [.954, .971, .968, .967], [.628, .661, .654, .657],
        [.882, .888, .886, .898], [.936, .931, .916, .931], [.661, .668, .609, .685], [.583, .583, .563, .625],
        [.775, .838, .866, .875], [1., 1., 1., 1.], [.940, .962, .965, .962], [.619, .666, .614, .669],
        [.972, .981, .9751, .975], [.957, .978, .946, .970],
    ])  # fmt: skip
    ranks = ranks_of(auc)
    assert ranks.mean(0) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=2e-3)


@pytest.mark.parametrize(
    ("ranks", "critical", "expected"),
    [
        ({"a": 1.0, "b": 2.0, "c": 3.0}, 1.0, [("a", "b"), ("b", "c")]),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, 2.0, [("a", "b", "c")]),
        ({"a": 1.0, "b": 2.5, "c": 4.0}, 1.0, []),
        ({"c": 3.0, "a": 1.0, "b": 1.5, "d": 3.2}, 1.6, [("a", "b"), ("b", "c"), ("c", "d")]),
        ({"a": 1.0, "b": 1.2, "c": 3.0, "d": 3.4}, 1.9, [("a", "b"), ("b", "c"), ("c", "d")]),
    ],
)
def test_groups(ranks: dict[str, float], critical: float, expected: list[tuple[str, ...]]) -> None:
    assert cliques(ranks, critical) == expected
