"""What is usual among the cases, and how likely a case with these figures is flawed.

Nobody says which masks are sound. Three things stand in for it:

1. the masks that agree best with the models, all signed differences alike, are a first guess (`first_trust`);
   where the outlines fall into several conventions (half of the masks drawn too large), the shared one counts
   (`maskmend.mixture.Groups`);
2. errors made on purpose in the given masks show what the figures of a flawed mask look like, with *these* models;
3. a logistic regression with weights that can only count against a mask tells both apart; the share of flawed cases
   and the trust in each are then estimated by expectation maximisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskmend.audit.evidence import Evidence, signed_names

ROUNDS = 4  # more let subtle flaws widen what counts as usual
RIDGE = 0.003
BELIEVED = 0.5  # share of cases that the first guess takes for sound
RATE = (0.01, 0.95)


@dataclass(frozen=True)
class Usual:
    """Middle and spread of each figure among sound cases."""

    surprises: np.ndarray  # (2, 4)
    signed: np.ndarray  # (2, G, M)

    @classmethod
    def of(cls, cases: Sequence[Evidence], trust: np.ndarray) -> Usual:
        """Weighted median and median deviation: what is left of the flawed does not move them."""
        surprises = np.stack([case.surprises for case in cases])
        signed = np.stack([case.signed for case in cases])
        return cls(_middle_and_spread(surprises, trust), _middle_and_spread(signed, trust))


def inputs(cases: Sequence[Evidence], usual: Usual) -> np.ndarray:
    """How unusual each case is, (N, I), each column 0 where it is usual and growing slowly beyond.

    Surprises count upwards only. Signed figures of one name are merged by their largest, and so are the classes.
    """
    surprises = np.stack([case.surprises for case in cases])
    signed = np.stack([case.signed for case in cases])  # (N, G, M)
    up = np.maximum((surprises - usual.surprises[0]) / usual.surprises[1], 0)
    odd = np.abs(np.nan_to_num((signed - usual.signed[0]) / usual.signed[1]))
    names = signed_names(_ndim(signed.shape[2]))
    merged = np.stack(
        [odd[:, :, [n == name for n in names]].max(axis=2) for name in dict.fromkeys(names)], axis=2
    )
    columns = [up, merged[:, 0]]
    if merged.shape[1] > 1:
        columns.append(merged[:, 1:].max(axis=1))
    both: np.ndarray = np.log1p(np.concatenate(columns, axis=1) ** 2 / 2)
    return both


@dataclass(frozen=True)
class Judge:
    """Tells how likely a case is flawed.

    Args:
        usual: figures of sound cases.
        weights: (1 + I,) intercept, then what each input counts, >= 0.
        rate: estimated share of flawed cases.
        trust: (N,) of the cases it was fitted on, that they are sound.
    """

    usual: Usual
    weights: np.ndarray
    rate: float
    trust: np.ndarray

    def log_odds(self, cases: Sequence[Evidence]) -> np.ndarray:
        """(N,) log of P(flawed) / P(sound)."""
        odds: np.ndarray = inputs(cases, self.usual) @ self.weights[1:] + self.weights[0] + _logit(self.rate)
        return odds


def first_trust(cases: Sequence[Evidence], trusted: np.ndarray) -> np.ndarray:
    """A first guess of which cases are sound, (N,) in [0, 1].

    The half that agrees best, among those of the shared convention; cases known to be clean always.

    Args:
        cases: figures with uncalibrated probabilities.
        trusted: (N,) bool, known to be clean.
    """
    convention = _convention(np.stack([case.signed[:, 0] for case in cases]))
    surprise = np.array([case.surprises[0] for case in cases])
    worth = np.where(convention > 0.5, -surprise, -surprise - 1e3)
    limit = np.quantile(worth, 1 - BELIEVED)
    trust: np.ndarray = np.where(trusted, 1.0, (worth >= limit) * convention)
    return trust


def fit(
    cases: Sequence[Evidence],
    flawed: Sequence[Evidence],
    origin: np.ndarray,
    trust: np.ndarray,
    trusted: np.ndarray,
) -> Judge:
    """Learn to tell flawed cases.

    Args:
        cases: as given, (N).
        flawed: cases with errors made on purpose, (M).
        origin: (M,) which case each of them was made from.
        trust: (N,) first guess that a case is sound.
        trusted: (N,) bool, known to be clean.
    """
    usual, weights, rate = Usual.of(cases, trust), np.zeros(1), 0.3
    for _ in range(ROUNDS):
        usual = Usual.of(cases, trust)
        sound, wrong = inputs(cases, usual), inputs(flawed, usual)
        rows = np.concatenate([sound, wrong])
        target = np.concatenate([np.zeros(len(sound)), np.ones(len(wrong))])
        weights = logistic(rows, target, np.concatenate([_share(trust), _share(trust[origin])]))
        odds = sound @ weights[1:] + weights[0]
        rate = _rate(odds[~trusted])
        trust = np.where(trusted, 1.0, 1 - _sigmoid(odds + _logit(rate)))
    return Judge(usual, weights, rate, trust)


def logistic(
    rows: np.ndarray, target: np.ndarray, weight: np.ndarray, *, least: float = 0.0, ridge: float = RIDGE
) -> np.ndarray:
    """Weighted logistic regression with slopes of at least `least`: (1 + I,) intercept and slopes.

    Args:
        rows: (N, I). target: (N,) in {0, 1}. weight: (N,) >= 0.
        least: lower bound of every slope; -inf for none.
        ridge: pulls slopes to 0.
    """
    from scipy.optimize import minimize

    weight = weight / weight.sum()

    def objective(free: np.ndarray) -> tuple[float, np.ndarray]:
        odds = rows @ free[1:] + free[0]
        off = weight * (_sigmoid(odds) - target)
        loss = weight @ (np.logaddexp(0, odds) - target * odds) + ridge / 2 * (free[1:] ** 2).sum()
        return float(loss), np.concatenate([[off.sum()], rows.T @ off + ridge * free[1:]])

    count = rows.shape[1]
    start = np.concatenate([[-1.0], np.full(count, 0.1)])
    bounds = [(None, None)] + [(None if np.isneginf(least) else least, None)] * count
    found: np.ndarray = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


def _convention(offsets: np.ndarray) -> np.ndarray:
    """P(a case is drawn in the shared way), (N,), from its signed offsets (N, G)."""
    import torch

    from maskmend.mixture import Groups

    belief = np.ones(len(offsets))
    for column in offsets.T:
        there = np.isfinite(column)
        if there.sum() < 20:
            continue
        spread = 1.4826 * np.median(np.abs(column[there] - np.median(column[there]))) + 1e-6
        scaled = torch.from_numpy(column[there, None] / spread).float()
        groups = Groups(width=12.0, least_sd=0.1)
        groups.fit(scaled)
        belief[there] *= groups.posterior(scaled).numpy()
    return belief


def _middle_and_spread(values: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """(2, ...) weighted median and spread of (N, ...) over cases; NaN does not count."""
    flat = values.reshape(len(values), -1)
    out = np.zeros((2, flat.shape[1]))
    for index, column in enumerate(flat.T):
        there = np.isfinite(column) & (trust > 0)
        if not there.any():
            out[:, index] = 0, 1
            continue
        middle = _weighted_median(column[there], trust[there])
        spread = 1.4826 * _weighted_median(np.abs(column[there] - middle), trust[there])
        out[:, index] = middle, spread + 1e-3 + 0.02 * abs(middle)
    return out.reshape(2, *values.shape[1:])


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _rate(odds: np.ndarray) -> float:
    """The share of flawed cases under which the mean posterior equals it (maximum likelihood)."""
    rate = 0.3
    for _ in range(100 if len(odds) else 0):
        rate = float(np.clip(_sigmoid(odds + _logit(rate)).mean(), *RATE))
    return rate


def _share(weight: np.ndarray) -> np.ndarray:
    return weight / max(float(weight.sum()), 1e-9)


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    value: np.ndarray = 0.5 * (1 + np.tanh(0.5 * odds))
    return value


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def _ndim(columns: int) -> int:
    return next(n for n in (2, 3) if len(signed_names(n)) == columns)
