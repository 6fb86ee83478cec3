"""What the cases together say of the data set: noise rates, confused classes, biased outlines, worth of a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskmend.audit.record import CaseRecord

LEAST_CASES = 3  # of a rater or a site before its bias is named


@dataclass
class Totals:
    """Counts that are summed case by case, so that no case need be kept.

    Args:
        names: of all classes, background first.
    """

    names: Sequence[str]
    joint: np.ndarray = field(init=False)
    offsets: list[tuple[str, str, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.joint = np.zeros((len(self.names), len(self.names)))

    def add(self, joint: np.ndarray, offsets_mm: np.ndarray, rater: str, site: str) -> None:
        """Count one case: expected voxels (K, K) by given and true class, and signed offsets (K - 1,) in mm."""
        self.joint += joint
        self.offsets.append((rater, site, offsets_mm))

    def facts(self) -> dict[str, Any]:
        """Noise rate and confusion by class (expected voxels), and the bias of outlines by class, rater and site."""
        given, true = self.joint.sum(axis=1), self.joint.sum(axis=0)
        drawn = float(given[1:].sum())
        wrong = float(self.joint.sum() - np.trace(self.joint))
        return {
            "wrong_share": round(wrong / max(drawn, 1e-9), 4),
            "class_noise": {
                name: {
                    "wrong_of_given": round(float(1 - self.joint[k, k] / given[k]) if given[k] else 0.0, 5),
                    "missing_of_true": round(float(1 - self.joint[k, k] / true[k]) if true[k] else 0.0, 5),
                }
                for k, name in enumerate(self.names)
            },
            "confusion": {
                name: {other: round(float(self.joint[k, j]), 1) for j, other in enumerate(self.names)}
                for k, name in enumerate(self.names)
            },
            "bias_mm": self._bias([one for _, _, one in self.offsets]),
            "bias_mm_by_rater": self._bias_by(0),
            "bias_mm_by_site": self._bias_by(1),
        }

    def _bias_by(self, column: int) -> dict[str, dict[str, Any]]:
        groups: dict[str, list[np.ndarray]] = {}
        for one in self.offsets:
            if one[column]:
                groups.setdefault(str(one[column]), []).append(one[2])
        return {name: self._bias(rows) for name, rows in sorted(groups.items()) if len(rows) >= LEAST_CASES}

    def _bias(self, rows: Sequence[np.ndarray]) -> dict[str, Any]:
        """Mean signed offset of each class with its 90 % interval; above 0 the outlines lie too far out."""
        found: dict[str, Any] = {}
        for k, name in enumerate(self.names[1:]):
            values = np.array([row[k] for row in rows])
            values = values[np.isfinite(values)]
            if len(values) < LEAST_CASES:
                continue
            low, high = np.quantile(values, (0.1, 0.9))
            middle = float(np.clip(values, low, high).mean())  # one wrong file must not make a rater's bias
            wide = 1.64 * float(np.clip(values, low, high).std(ddof=1)) / len(values) ** 0.5
            found[name] = {
                "mean": round(middle, 3), "low": round(middle - wide, 3), "high": round(middle + wide, 3),
                "cases": len(values),
            }  # fmt: skip
        return found


def budget(records: Sequence[CaseRecord]) -> list[tuple[int, float]]:
    """What redrawing the first n masks buys: (n, expected share of all wrong voxels that is gone), n from 0 to N.

    Args:
        records: worst first, the order in which they would be redrawn.
    """
    wrong = np.array([record.wrong_voxels for record in records], float)
    gone = np.concatenate([[0.0], np.cumsum(wrong)]) / max(float(wrong.sum()), 1e-9)
    return [(n, round(float(share), 4)) for n, share in enumerate(gone)]
