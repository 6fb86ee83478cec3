"""One mask from several raters, written as a label file per case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.data.case import Dataset
from maskmend.data.formats import suffix_of
from maskmend.data.images import write_label
from maskmend.data.preprocess import IGNORED
from maskmend.data.raters import Fuse, fused, majority, vote_shares
from maskmend.errors import UsageError, unknown

RULES = ("majority", "staple", "weighted")
Progress = Callable[[int, int], None]
_log = logging.getLogger("maskmend")


def fuse_rule(rule: str, weights: Sequence[float] | None = None) -> Fuse:
    """A rule that makes one class of several votes.

    Args:
        rule: "majority", "staple" (Warfield et al. 2004, each case by itself), or "weighted".
        weights: of the raters, for "weighted".

    Raises:
        UsageError: an unknown rule, or weights missing.
    """
    if rule == "majority":
        return majority
    if rule == "staple":
        return _staple
    if rule == "weighted":
        if weights is None:
            raise UsageError("a weighted vote needs the raters' weights", "consensus")
        fixed = np.asarray(weights, float)
        return lambda votes, counts, classes: vote_shares(votes, fixed, classes).argmax(axis=1)
    raise unknown("rule of consensus", rule, RULES)


def _staple(votes: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    from maskmend.methods.staple import staple

    return staple(votes, counts, classes, 500)[0].argmax(axis=1)


def rater_weights(dice: Mapping[str, float]) -> dict[str, float]:
    """Weights of a vote from each rater's mean Dice with the others: its log odds, as of an expert's hit rate.

    A rater no better than 0.5 hardly counts; one at 0.95 weighs as much as two at 0.81.
    """
    clipped = {name: float(np.clip(value, 0.52, 0.99)) for name, value in dice.items()}
    return {name: float(np.log(value / (1 - value))) for name, value in clipped.items()}


def write_consensus(
    dataset: Dataset,
    out: Path | str,
    rule: str = "staple",
    *,
    raters: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write `out/CASE.EXT` for every case with at least two of the raters, in the grid and format of their masks.

    The folder can serve as `labels/` of a data set. Where nobody annotated a voxel the data set's ignore value stands.

    Args:
        dataset: with its classes named.
        out: the folder; made if missing.
        rule: see `fuse_rule`.
        raters: names; None: all.
        weights: by name, for "weighted".
        progress: called with (cases done, all).

    Returns:
        The files.
    """
    from maskmend.audit.raters import read_masks

    written, skipped = [], 0
    values = np.array([*dataset.labels.values()])
    for number, case in enumerate(dataset.cases, 1):
        names = [name for name in case.raters if raters is None or name in raters]
        if len(names) < 2:
            skipped += 1
        else:
            masks, geometry = read_masks(case, names, dataset)
            fuse = fuse_rule(rule, None if weights is None else [weights[name] for name in names])
            label = fused(np.stack(list(masks.values())), len(values), fuse)
            path = Path(out) / f"{case.id}{suffix_of(case.raters[names[0]])}"
            write_label(path, _file_values(label, values, dataset.ignore, case.id), geometry)
            written.append(path)
        if progress is not None:
            progress(number, len(dataset.cases))
    if skipped:
        _log.warning("%s: %d cases with fewer than two raters have no consensus", dataset.root, skipped)
    return written


def _file_values(label: np.ndarray, values: np.ndarray, ignore: int | None, case: str) -> np.ndarray:
    silent = label == IGNORED
    if silent.any() and ignore is None:
        raise UsageError(
            "nobody annotated some voxels, and the data set has no ignore value", case, "data.ignore="
        )
    file = values[np.where(silent, 0, label)]
    return np.where(silent, -1 if ignore is None else ignore, file).astype(np.int32)


def consensus_facts(rule: str, weights: Mapping[str, float] | None) -> dict[str, Any]:
    """How the masks were made, for JSON."""
    return {"rule": rule} | ({"weights": {k: round(v, 3) for k, v in weights.items()}} if weights else {})
