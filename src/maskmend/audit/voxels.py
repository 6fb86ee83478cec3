"""How likely each voxel's label is wrong: the model's doubt, weighed by the evidence that the case is flawed.

Where a mask is sound, the model's doubt is the model's error; where it is flawed, the doubt is right. A logistic
regression on the log odds of the case and of the voxel, fitted to errors made on purpose, says how both combine, so
that the sum of the map is the expected number of wrong voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskmend.audit.look import Look
from maskmend.audit.population import logistic, sigmoid

DOUBTED = 0.03  # voxels that the model doubts less are taken for right
SAMPLED = 200  # voxels per case to learn from
COLUMNS = 5  # of what the regression sees
_CASE, _VOXEL = (-6.0, 8.0), (-4.0, 7.0)  # log odds beyond these say no more


def doubted(look: Look) -> np.ndarray:
    """(n,) flat places in the box of the voxels whose given label the model doubts."""
    return np.flatnonzero(look.given.ravel() < 1 - DOUBTED)


def figures_at(look: Look, at: np.ndarray) -> np.ndarray:
    """What the model says of the voxels at these flat places (n,), (n, 2) float32.

    Log odds of the best other class against the given one, and log of the probability that the given one is wrong, by
    the model alone.
    """
    given, label = look.given.ravel().take(at), look.label.ravel().take(at)
    other = np.full(len(at), np.float32(1e-6))
    for k, probs in enumerate(look.probs):
        np.maximum(other, probs.ravel().take(at) * (label != k), out=other)
    figures = np.empty((len(at), 2), np.float32)
    np.clip(np.log(other / given), *_VOXEL, out=figures[:, 0])
    np.log(1 - given, out=figures[:, 1])
    return figures


def columns(figures: np.ndarray, case_odds: np.ndarray | float) -> np.ndarray:
    """What the regression sees, (n, 5)."""
    odds, log_doubt = figures.T
    case = np.broadcast_to(np.clip(case_odds, *_CASE), odds.shape)
    flawed = sigmoid(case)
    return np.stack([case, odds, log_doubt, flawed * odds, flawed * log_doubt], axis=1)


@dataclass(frozen=True)
class VoxelJudge:
    """The fitted combination; see the module."""

    weights: np.ndarray

    def noise(self, look: Look, case_odds: float) -> np.ndarray:
        """(*B) float32: the probability that each voxel's given label is wrong.

        Args:
            look: with calibrated probabilities.
            case_odds: log odds that the case is flawed.
        """
        out = np.zeros(look.label.size, np.float32)
        at = doubted(look)
        figures = figures_at(look, at)
        start, case, odds, log_doubt, by_odds, by_doubt = self.weights  # of `columns`, all of one case
        case_odds = float(np.clip(case_odds, *_CASE))
        flawed = float(sigmoid(np.float64(case_odds)))
        by_voxel = np.array([odds + flawed * by_odds, log_doubt + flawed * by_doubt], figures.dtype)
        out[at] = sigmoid(figures @ by_voxel + (start + case * case_odds))
        return out.reshape(look.label.shape)


@dataclass(frozen=True)
class VoxelSample:
    """Doubted voxels of one case: figures (n, 2), which are wrong (n,) bool, and how many one stands for."""

    figures: np.ndarray
    wrong: np.ndarray
    each: float


def sample(look: Look, truth: np.ndarray, rng: np.random.Generator) -> VoxelSample:
    """A fair draw of the doubted voxels of a mask whose truth (*B) is (taken to be) known."""
    at = doubted(look)
    kept = at[rng.permutation(len(at))[:SAMPLED]] if len(at) > SAMPLED else at
    wrong = look.label.ravel()[kept] != truth.ravel()[kept]
    return VoxelSample(figures_at(look, kept), wrong, look.each * len(at) / max(len(kept), 1))


def fit(samples: Sequence[VoxelSample], case_odds: np.ndarray, weight: np.ndarray) -> VoxelJudge:
    """Learn the combination.

    Args:
        samples: of sound cases (nothing wrong) and of cases with errors made on purpose.
        case_odds: (S,) log odds of each that it is flawed.
        weight: (S,) how much each counts.
    """
    rows = np.concatenate([columns(s.figures, o) for s, o in zip(samples, case_odds, strict=True)])
    wrong = np.concatenate([s.wrong for s in samples]).astype(float)
    counts = np.concatenate([np.full(len(s.wrong), s.each * w) for s, w in zip(samples, weight, strict=True)])
    if not len(rows) or not counts.sum() or not wrong.any():
        return VoxelJudge(np.array([-8.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
    return VoxelJudge(logistic(rows, wrong, counts, least=-np.inf, ridge=1e-5))
