"""Set a model's probabilities to the way in which the sound masks are drawn.

A network's outline lies a little inside or outside the annotators', by the same amount in all cases, and it is surer
than it should be. Neither is an error of a mask. softmax(a log p + b) with one sharpness and one shift per
class, fitted to the masks that are believed, takes both out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskmend.audit.look import LEAST, Look

SAMPLED = 240  # voxels per case
_DOUBTFUL = 0.98
_PRIOR = 1e-4  # mild: without contradicting voxels nothing pulls the model away from itself


@dataclass(frozen=True)
class Calibration:
    """softmax(scale * log p + bias).

    Args:
        scale: sharpness; below 1 the model was too sure.
        bias: (K,) per class, 0 for background.
    """

    scale: float
    bias: np.ndarray

    @classmethod
    def none(cls, classes: int) -> Calibration:
        """Leaves probabilities as they are."""
        return cls(1.0, np.zeros(classes, np.float32))

    def __call__(self, look: Look) -> Look:
        """The look with calibrated probabilities in [LEAST, 1]."""
        logits = np.log(look.probs)
        logits *= np.float32(self.scale)
        logits += self.bias.reshape(-1, *[1] * look.label.ndim).astype(np.float32)
        # Between e^-41 and e^6, so nothing need be subtracted: probabilities are LEAST or more, `fit` bounds the rest.
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=0)
        nothing = look.probs[1:].max(axis=0) <= LEAST  # and stays so, however unsure the model shall be
        for k, plane in enumerate(logits):
            np.copyto(plane, np.float32(LEAST if k else 1), where=nothing)
        if look.valid is not None:
            logits[0, ~look.valid], logits[1:, ~look.valid] = 1, 0
        return look.with_probs(np.clip(logits, LEAST, 1, out=logits))


def sample(look: Look, rng: np.random.Generator) -> np.ndarray:
    """Voxels to calibrate on, (n, K + 2): log p, the given class, how many voxels one stands for.

    Three quarters are drawn where the model doubts the mask: these decide the fit. The rest is drawn where it does
    not, without which the fit would learn to doubt everything.
    """
    probs, label = look.probs.reshape(look.classes, -1), look.label.ravel()
    given = look.given.ravel()
    known = np.ones(len(label), bool) if look.valid is None else look.valid.ravel()
    rows = [np.zeros((0, look.classes + 2), np.float32)]
    for stratum, size in ((given < _DOUBTFUL, 3 * SAMPLED // 4), (given >= _DOUBTFUL, SAMPLED // 4)):
        places = np.flatnonzero(stratum & known)
        if len(places):
            chosen = rng.choice(places, size)
            weight = np.full(size, look.each * len(places) / size, np.float32)
            rows.append(np.column_stack([np.log(probs[:, chosen]).T, label[chosen], weight]))
    return np.concatenate(rows)


def fit(samples: Sequence[np.ndarray], trust: np.ndarray) -> Calibration:
    """The calibration that best explains the masks that are believed.

    Args:
        samples: of `sample`, one per case.
        trust: (N,) weight of each case, in [0, 1].
    """
    from scipy.optimize import minimize

    rows = np.concatenate(samples).astype(np.float64)
    weight = rows[:, -1] * np.repeat(trust, [len(one) for one in samples])
    rows, weight = rows[weight > 0], weight[weight > 0]
    classes = samples[0].shape[1] - 2
    if not len(rows):
        return Calibration.none(classes)
    weight /= weight.sum()
    logs, given = rows[:, :classes], np.eye(classes)[rows[:, classes].astype(int)]

    def objective(free: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = free[0], np.concatenate([[0.0], free[1:]])
        logits = scale * logs + bias
        top = logits.max(axis=1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        off = (np.exp(logits - total[:, None]) - given) * weight[:, None]
        loss = weight @ (total - (logits * given).sum(axis=1))
        slope = np.concatenate(
            [[(off * logs).sum() + 2 * _PRIOR * (scale - 1)], off.sum(0)[1:] + 2 * _PRIOR * bias[1:]]
        )
        return float(loss + _PRIOR * ((scale - 1) ** 2 + (bias**2).sum())), slope

    start = np.concatenate([[1.0], np.zeros(classes - 1)])
    best = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=[(0.2, 5)] + [(-6, 6)] * (classes - 1)
    )
    return Calibration(float(best.x[0]), np.concatenate([[0.0], best.x[1:]]).astype(np.float32))
