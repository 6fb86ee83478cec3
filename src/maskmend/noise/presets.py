"""Flaw a share of a data set's masks, in memory or on disk, with everything recorded."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from maskmend.errors import UsageError
from maskmend.noise.corrupt import corrupt_label


def choose_cases(ids: Iterable[str], rate: float, seed: int) -> list[str]:
    """The round(rate * n) cases to flaw, sorted; independent of the order of `ids`.

    Raises:
        UsageError: the rate is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise UsageError(f"rate {rate} is a share of the cases, in [0, 1]", "rate")
    names = sorted(ids)
    order = np.random.default_rng([seed, 0]).permutation(len(names))
    return sorted(names[i] for i in order[: round(rate * len(names))])


def case_rng(case: str, seed: int) -> np.random.Generator:
    """The generator of one case: its flaw does not depend on which other cases there are."""
    return np.random.default_rng([seed, 1, zlib.crc32(case.encode())])


def corrupt_labels(
    cases: Mapping[str, np.ndarray],
    rate: float,
    kind: str = "mixed",
    radius_mm: Sequence[float] = (2.0, 5.0),
    seed: int = 0,
    *,
    spacing_mm: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    **params: Any,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Flaw a share of the masks.

    Args:
        cases: mask (*S) by case id, 0 is background.
        rate: share of the cases that get a flaw, in [0, 1]; exactly round(rate * n) of them.
        kind: "dilate" or "erode" (biased: always the same mistake), "move", or "mixed" (each in equal parts).
        radius_mm: smallest and largest radius (of a move: shift).
        seed: any integer >= 0; with the case id it fixes the flaw.
        spacing_mm: voxel size for all cases, or by case id; None: 1 mm.
        **params: see `corrupt_label`.

    Returns:
        A mask by case id (those without a flaw are the arrays given), and the record: the settings, and under
        "cases" what was done to each flawed case.
    """
    chosen = choose_cases(cases, rate, seed)
    labels, records = dict(cases), {}
    for name in chosen:
        spacing = spacing_mm[name] if isinstance(spacing_mm, Mapping) else spacing_mm
        label = cases[name]
        labels[name], records[name] = corrupt_label(
            label, spacing or (1.0,) * label.ndim, kind, case_rng(name, seed), radius_mm=radius_mm, **params
        )
    return labels, {"settings": settings(rate, kind, radius_mm, seed, params), "cases": records}


def settings(
    rate: float, kind: str, radius_mm: Sequence[float], seed: int, params: Mapping[str, Any]
) -> dict[str, Any]:
    """What fixes the noise, ready for JSON."""
    return {"rate": rate, "kind": kind, "radius_mm": [float(r) for r in radius_mm], "seed": seed, **params}
