"""Numbers drawn from settings, which are checked on the way: what a user wrote is named when it cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskmend.errors import UsageError


def draw_range(rng: np.random.Generator, limits: Sequence[float], where: str, least: float = 0.0) -> float:
    """A number from [smallest, largest].

    Raises:
        UsageError: `limits` are no two finite numbers in order, or reach below `least`.
    """
    return float(rng.uniform(*_pair(limits, where, least, float)))


def draw_count(rng: np.random.Generator, limits: Sequence[int], where: str, least: int = 0) -> int:
    """A whole number from smallest to largest, both included; errors as `draw_range`."""
    low, high = _pair(limits, where, least, int)
    return int(rng.integers(low, high + 1))


def draw_seed(rng: np.random.Generator) -> int:
    """A seed to record, for flaws with more random numbers than one wants to read."""
    return int(rng.integers(2**32))


def at_least(value: float, least: float, where: str) -> float:
    """The number, checked.

    Raises:
        UsageError: it is no finite number, or below `least`.
    """
    if not least <= value < math.inf:
        raise UsageError(f"{value} must be a number >= {least:g}", where)
    return float(value)


def _pair(limits: Any, where: str, least: float, kind: Callable[[Any], Any]) -> tuple[Any, Any]:
    fault = UsageError(f"{limits!r} must be two numbers, {least:g} <= smallest <= largest", where)
    try:
        low, high = (kind(limit) for limit in limits)
    except (TypeError, ValueError, OverflowError):
        raise fault from None
    if not least <= low <= high < math.inf:
        raise fault
    return low, high
