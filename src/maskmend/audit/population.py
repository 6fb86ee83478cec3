"""What is usual among the cases, and how likely a case with these figures is flawed, by kind of error.

Nobody says which masks are sound. Six things stand in for it:

1. the masks that agree best with the models are a first guess (`first_trust`); where the outlines fall into several
   conventions (half of the masks drawn too large), the shared one counts (`maskmend.mixture.Groups`);
2. errors made on purpose in the given masks show what the figures of each kind of error look like, with *these*
   models. A logistic regression for each kind, and one for all together, whose weights can only count against a
   mask, give the ratio of their density to that of sound masks;
3. how common each kind is among the cases is estimated by expectation maximisation, and with it the trust in each
   case: where many masks are drawn too large, a slightly large one is more suspicious. By kind alone this goes too
   far on few cases, all kinds together go not far enough: the log odds of both are averaged;
4. on some images a model is lost: its outline is far softer or more ragged than on the others. Its verdict says
   nothing there, and the case is as likely flawed as any;
5. objects that only the mask or only the model has are judged by themselves (`maskmend.audit.presence`): a mask is
   sound if its outlines and all of its objects are;
6. where nothing is drawn and nothing seen there is nothing to judge, and where only one of the two has something the
   question is whether it is there (`Judge.verdict`): neither says what is usual in outlines (`telling`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from maskmend.audit.evidence import SURPRISES, Evidence, axes_of, name_starts, signed_names
from maskmend.audit.presence import MOST_MISSED, Presence

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 3  # more let subtle flaws widen what counts as usual
LEAST_APART = 0.75  # see `apart`; below, what counts as usual widens until nothing is unusual
RIDGE = 0.01
BELIEVED = 0.5  # share of cases that the first guess takes for sound
RATE = (0.002, 0.6)  # least of each kind, most of all together: beyond, the flaws are the convention
SETTLED = 1e-9  # change of the rates, after which nothing moves any more
LOST = (4.0, 0.7)  # spreads above the usual doubt at which a model is as likely lost as not, and how sharply
UNKNOWN = -4.0  # log odds where no errors could be made to learn from
BLANK = -6.0  # log odds of a blank case, where most masks are empty
RARE = 1.5  # by how much of the log odds that an image is not empty they are more, where fewer are
FEW_EMPTY = 0.2  # share of all masks, below which all empty ones may be wrong; of more `MOST_MISSED`
MOST_PRIOR = 5.0  # log odds that the share of empty images can give
SIZE = -3  # column of `Evidence.signed`
LEAST_TELLING = 10  # cases that tell, below which others are asked too
EXACT = 0.002  # of an object's size, by which masks are thought to waver even where models agree perfectly with most
LOG_SIZE = 6.0  # of what is drawn, whatever the unit: larger middles widen no spread
LEAST_CASES = 20  # from which conventions are looked for


@dataclass(frozen=True)
class Usual:
    """Middle and spread of each figure: of what is drawn among sound cases, of the models' doubts among all.

    Args:
        surprises: (2, S). signed: (2, G, M). doubts: (2, D).
        seen: (2, 2) of the size of what models see, and of their sureness, among sound cases in which something is
            drawn as well.
    """

    surprises: np.ndarray
    signed: np.ndarray
    doubts: np.ndarray
    seen: np.ndarray

    @classmethod
    def of(cls, cases: Sequence[Evidence], trust: np.ndarray) -> Usual:
        """Weighted median and median deviation: what is left of the flawed does not move them."""
        weight = trust if trust.sum() > 1 else np.ones(len(cases))
        signed = middle_and_spread(np.stack([case.signed for case in cases]), weight)
        lengths = signed[1, :, :SIZE]
        ndim = axes_of(signed.shape[2])
        np.maximum(lengths, EXACT * np.exp(signed[0, :, SIZE, None] / ndim), out=lengths)
        return cls(
            middle_and_spread(np.stack([case.surprises for case in cases]), weight),
            signed,
            middle_and_spread(np.stack([case.doubts for case in cases]), np.ones(len(cases))),
            middle_and_spread(
                np.array([_seen(case) if case.drawn and case.seen else (np.nan, np.nan) for case in cases]),
                weight,
            ),
        )

    def lacking(self, case: Evidence) -> float:
        """By how many spreads what the model sees is smaller than usual, or the model less sure of it.

        The larger of the two: of small objects it is less sure.
        """
        below = (self.seen[0] - _seen(case)) / self.seen[1]
        return float(max(below.max(), 0.0))

    def excess(self, cases: Sequence[Evidence]) -> np.ndarray:
        """(N,) by how many spreads the model's doubts about a case are above the usual."""
        above = (np.stack([case.doubts for case in cases]) - self.doubts[0]) / self.doubts[1]
        return np.asarray(np.nan_to_num(above).max(axis=1))

    def lost(self, cases: Sequence[Evidence]) -> np.ndarray:
        """(N,) how likely the model's verdict says nothing about a case, by its doubts alone."""
        return lost_at(self.excess(cases))

    @property
    def volume(self) -> float:
        """Of what is drawn in a case, mm2 or mm3."""
        return float(np.exp(self.signed[0, 0, SIZE]))

    @property
    def volumes(self) -> np.ndarray:
        """(K - 1,) the same of each class."""
        return np.asarray(np.exp(self.signed[0, 1 if len(self.signed[0]) > 1 else 0 :, SIZE]))

    @property
    def offsets(self) -> np.ndarray:
        """(G,) the middle of the signed offsets, mm."""
        return np.asarray(self.signed[0, :, 0])


def _seen(case: Evidence) -> tuple[float, float]:
    return case.seen_size, case.sureness


def inputs(cases: Sequence[Evidence], usual: Usual) -> np.ndarray:
    """How unusual each case is, (N, I), each column 0 where it is usual and growing slowly beyond.

    Blank cases are usual. Surprises count upwards only; offsets have a column for each direction. Signed figures of one
    name are merged by their largest, and so are the classes.
    """
    up = np.nan_to_num(
        (np.stack([case.surprises for case in cases]) - usual.surprises[0]) / usual.surprises[1]
    )
    off = np.nan_to_num((np.stack([case.signed for case in cases]) - usual.signed[0]) / usual.signed[1])
    merged = np.maximum.reduceat(np.abs(off), name_starts(off.shape[2])[1:], axis=2)
    groups = np.concatenate([off[:, :, :1], -off[:, :, :1], merged], axis=2)
    columns = [up, groups[:, 0]]
    if groups.shape[1] > 1:
        columns.append(groups[:, 1:].max(axis=1))
    both: np.ndarray = np.log1p(np.maximum(np.concatenate(columns, axis=1), 0) ** 2 / 2)
    return both


def inputs_count(classes: int, ndim: int) -> int:
    """I, the number of columns of `inputs` for this many classes and axes."""
    by_group = 2 + len(name_starts(len(signed_names(ndim)))) - 1
    return len(SURPRISES) + by_group * (1 if classes == 2 else 2)


@dataclass(frozen=True)
class Ratios:
    """Density of errors against that of sound masks, by kind of error.

    Args:
        weights: (kinds, 1 + I) intercept, then what each input counts, >= 0.
        rates: (kinds,) estimated share of the cases with each kind.
    """

    weights: np.ndarray
    rates: np.ndarray

    @classmethod
    def of(
        cls, sound: np.ndarray, wrong: np.ndarray, kind: np.ndarray, trust: np.ndarray, origin: np.ndarray,
        doubtful: np.ndarray,
    ) -> Ratios:  # fmt: skip
        """Fit one regression for each number in `kind` (M,), then the rates among the `doubtful` cases (N,) bool."""
        rows = []
        for one in range(int(kind.max()) + 1):
            mine = kind == one
            table = np.concatenate([sound, wrong[mine]])
            target = np.concatenate([np.zeros(len(sound)), np.ones(int(mine.sum()))])
            rows.append(logistic(table, target, np.concatenate([share(trust), share(trust[origin[mine]])])))
        weights = np.stack(rows)
        return cls(weights, _rates(sound[doubtful] @ weights[:, 1:].T + weights[:, 0]))

    def logs(self, rows: np.ndarray) -> np.ndarray:
        """(N, kinds) log of rate times density ratio."""
        return np.asarray(rows @ self.weights[:, 1:].T + self.weights[:, 0] + np.log(self.rates))

    def odds(self, rows: np.ndarray) -> np.ndarray:
        """(N,) log of P(flawed) / P(sound)."""
        logs = self.logs(rows)
        top = logs.max(axis=1)
        rest = np.log(max(1 - float(self.rates.sum()), 1e-3))
        return np.asarray(top + np.log(np.exp(logs - top[:, None]).sum(axis=1)) - rest)


@dataclass(frozen=True)
class Judge:
    """Tells how likely a case is flawed.

    Args:
        usual: figures of sound cases.
        kinds: of errors, in the order of `by_kind`.
        by_kind, together: density ratios; None where no errors could be made.
        trust: (N,) of the cases it was fitted on, that they are sound.
        rate: estimated share of flawed cases.
        empty: share of empty masks, in (0, 1).
        seen_in_empty: share of these in which the model sees something.
        presence: of objects that only the mask or only the model has.
    """

    usual: Usual
    kinds: tuple[str, ...]
    by_kind: Ratios | None
    together: Ratios | None
    trust: np.ndarray
    rate: float
    empty: float
    seen_in_empty: float
    presence: Presence

    def verdict(self, cases: Sequence[Evidence]) -> np.ndarray:
        """(N,) log of P(flawed) / P(sound), if the model can be believed."""
        return self.with_objects(self.in_outlines(cases), cases)

    def with_objects(self, outlines: np.ndarray, cases: Sequence[Evidence]) -> np.ndarray:
        """`verdict` from `in_outlines`."""
        odds = outlines.copy()
        for number, case in enumerate(cases):
            if case.lone and not case.one_sided:
                odds[number] = self.presence.joined(float(odds[number]), case.lone)
        return odds

    def in_outlines(self, cases: Sequence[Evidence]) -> np.ndarray:
        """(N,) the same of errors in outlines; of one-sided and blank cases the verdict."""
        odds = np.full(len(cases), UNKNOWN)
        if self.by_kind is not None and self.together is not None:
            rows = inputs(cases, self.usual)
            odds = 0.5 * (self.by_kind.odds(rows) + self.together.odds(rows))
        for number, case in enumerate(cases):
            if case.one_sided:
                odds[number] = self._is_it_there(case)
        return np.where(blank(cases), BLANK + RARE * max(self._fullness, 0.0), odds)

    @property
    def _fullness(self) -> float:
        """Log odds that an image is not empty, by how many are."""
        return float(np.clip(np.log((1 - self.empty) / self.empty), -MOST_PRIOR, MOST_PRIOR))

    def _is_it_there(self, case: Evidence) -> float:
        """Log odds that the mask of a one-sided case is wrong.

        Errors made in outlines say nothing of that. The model's confidence does, and how common empty images are; of
        what it sees also how much it is like what it sees of drawn objects, for specks are seen in many, and how often
        it sees anything in empty ones.
        """
        if case.drawn:
            return max(case.confidence - self._fullness, float(logit(np.float64(self.rate))))
        sound = max(self.seen_in_empty - MOST_MISSED, 1e-3)
        habit = max(np.log(sound / MOST_MISSED), 0.0) if self.empty > FEW_EMPTY else 0.0
        return float(case.sureness + self._fullness - self.usual.lacking(case) - habit)

    def log_odds(self, cases: Sequence[Evidence]) -> np.ndarray:
        """(N,) the same, with what is known where the model is lost."""
        return self._believed(self.verdict(cases), cases)

    def outline_odds(self, cases: Sequence[Evidence]) -> np.ndarray:
        """(N,) the same of `in_outlines`."""
        return self._believed(self.in_outlines(cases), cases)

    def _believed(self, odds: np.ndarray, cases: Sequence[Evidence]) -> np.ndarray:
        return believed(odds, self.usual.lost(cases), self.beforehand(cases))

    def beforehand(self, cases: Sequence[Evidence]) -> np.ndarray:
        """(N,) how likely each is flawed, as far as is known without the model's verdict: the share of flawed cases.

        Of empty masks where the model sees something, the share of images that are not empty.
        """
        missing = np.array([case.seen and not case.drawn for case in cases], bool)
        return np.where(missing, 1 - self.empty, self.rate)


def blank(cases: Sequence[Evidence]) -> np.ndarray:
    """(N,) bool, see `Evidence.blank`."""
    return np.array([case.blank for case in cases], bool)


def telling(cases: Sequence[Evidence], trusted: np.ndarray) -> np.ndarray:
    """Which cases say what is usual, (N,) bool: those in which something is drawn and something seen.

    Blank cases would make anything that is drawn unusual. Whether a mask is wrong where only one of the two has
    something is the very question, and such cases may be many; only trusted ones tell. Of models so weak that hardly
    any case has both, all that is drawn does.
    """
    drawn, seen = (np.array([getattr(case, name) for case in cases], bool) for name in ("drawn", "seen"))
    both = drawn & seen
    return np.asarray((both if both.sum() >= LEAST_TELLING else drawn) | (trusted & ~blank(cases)))


def lost_at(excess: np.ndarray) -> np.ndarray:
    """How likely a model is lost that doubts by so many spreads more than usual."""
    return sigmoid((excess - LOST[0]) / LOST[1])


def believed(verdict: np.ndarray, lost: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Log odds that cases are flawed, (N,), from the models' own and the probability that these say nothing.

    Args:
        verdict: (N,) log odds. lost: (N,) in [0, 1].
        rate: (N,) how likely each is flawed beforehand, which is all that is known where a model is lost.
    """
    return logit(lost * rate + (1 - lost) * sigmoid(verdict))


def first_trust(cases: Sequence[Evidence], trusted: np.ndarray) -> np.ndarray:
    """A first guess of which cases are sound, (N,) in [0, 1].

    The half that agrees best among those of the shared convention; blank cases and those known to be clean always.

    Args:
        cases: figures with uncalibrated probabilities.
        trusted: (N,) bool, known to be clean.
    """
    nothing, told = blank(cases), telling(cases, trusted)
    offsets = np.stack([case.signed[:, 0] for case in cases])
    belief = convention(np.where(told[:, None], offsets, np.nan), trusted)
    surprise = np.array([case.disagreement for case in cases])
    worth = np.where(belief > 0.5, -surprise, -surprise - 1e3)
    limit = np.quantile(worth[told], 1 - BELIEVED) if told.any() else 0.0
    trust: np.ndarray = np.where(trusted | nothing, 1.0, (worth >= limit) * belief * told)
    return trust


def fit(
    cases: Sequence[Evidence],
    flawed: Sequence[Evidence],
    kinds: Sequence[str],
    origin: np.ndarray,
    trust: np.ndarray,
    trusted: np.ndarray,
) -> Judge:
    """Learn to tell flawed cases.

    Args:
        cases: as given, (N).
        flawed: cases with errors made on purpose, (M).
        kinds: (M) of these errors.
        origin: (M,) which case each of them was made from.
        trust: (N,) first guess that a case is sound.
        trusted: (N,) bool, known to be clean.
    """
    known = tuple(sorted(set(kinds)))
    number = np.array([known.index(one) for one in kinds], int)
    told, undrawn = telling(cases, trusted), [case for case in cases if not case.drawn]
    empty = (len(undrawn) + 1) / (len(cases) + 2)
    seen = sum(case.seen for case in undrawn) / max(len(undrawn), 1)
    usual = Usual.of(cases, trust)
    judge = Judge(usual, known, None, None, trust, 0.0, empty, seen, Presence.of(cases, usual.volumes))
    lost = judge.usual.lost(cases)
    asked = ~trusted & told & (lost < 0.5)
    for number_of_round in range(ROUNDS if known else 0):
        weight = np.where(trusted, 1.0, trust * (1 - lost)) * told
        usual = Usual.of(cases, weight)
        sound, wrong = inputs(cases, usual), inputs(flawed, usual)
        by_kind = Ratios.of(sound, wrong, number, weight, origin, asked)
        together = Ratios.of(sound, wrong, np.zeros_like(number), weight, origin, asked)
        doubt = sigmoid(0.5 * (by_kind.odds(sound[asked]) + together.odds(sound[asked])))
        rate = float(np.clip(doubt.mean() if len(doubt) else 0.0, *RATE))
        judge = replace(judge, usual=usual, by_kind=by_kind, together=together, trust=trust, rate=rate)
        trust = np.where(trusted, 1.0, sigmoid(-judge.log_odds(cases)))
        judge = replace(judge, trust=trust)
        if number_of_round == 0 and apart(together, sound, weight, wrong) < LEAST_APART:
            break
    return judge


def apart(ratios: Ratios, sound: np.ndarray, weight: np.ndarray, wrong: np.ndarray) -> float:
    """How often an error (M, I) ranks above a sound case (N, I) of this weight (N,); 0.5 is chance."""
    sounds, wrongs = (rows @ ratios.weights[0, 1:] for rows in (sound, wrong))
    order = np.argsort(sounds)
    below = np.concatenate([[0.0], np.cumsum(share(weight)[order])])
    sides = [below[np.searchsorted(sounds[order], wrongs, side)] for side in ("left", "right")]
    return float(np.mean(sides))


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
        off = weight * (sigmoid(odds) - target)
        loss = weight @ (np.logaddexp(0, odds) - target * odds) + ridge / 2 * (free[1:] ** 2).sum()
        return float(loss), np.concatenate([[off.sum()], rows.T @ off + ridge * free[1:]])

    count = rows.shape[1]
    start = np.concatenate([[-1.0], np.full(count, 0.1)])
    bounds = [(None, None)] + [(None if np.isneginf(least) else least, None)] * count
    found: np.ndarray = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


def convention(offsets: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """P(a case is drawn in the shared way), (N,), from its signed offsets (N, G).

    The shared way is the one that trusted cases (N,) bool follow; without any, that of the densest group.
    """
    import torch

    from maskmend.mixture import Groups

    belief = np.ones(len(offsets))
    for column in offsets.T:
        there = np.isfinite(column)
        if there.sum() < LEAST_CASES:
            continue
        spread = 1.4826 * np.median(np.abs(column[there] - np.median(column[there]))) + 1e-6
        scaled = torch.from_numpy(column[there, None] / spread).float()
        groups = Groups(width=12.0, least_sd=0.1)
        groups.fit(scaled, _followed_by(trusted[there]))
        belief[there] *= groups.posterior(scaled).numpy()
    return belief


def _followed_by(trusted: np.ndarray) -> Callable[[Tensor], float] | None:
    """Support for a group of cases (their numbers): the share of the trusted ones in it, more than any density."""
    if not trusted.any():
        return None
    return lambda group: 20.0 * float(trusted[group.numpy()].sum()) / float(trusted.sum())


def middle_and_spread(values: np.ndarray, trust: np.ndarray) -> np.ndarray:
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
        out[:, index] = middle, spread + 1e-3 + 0.02 * min(abs(middle), LOG_SIZE)
    return out.reshape(2, *values.shape[1:])


def share(weight: np.ndarray) -> np.ndarray:
    """Weights that sum to 1."""
    return weight / max(float(weight.sum()), 1e-9)


def sigmoid(odds: np.ndarray) -> np.ndarray:
    """Probability from log odds."""
    value: np.ndarray = 0.5 * (1 + np.tanh(0.5 * odds))
    return value


def logit(chance: np.ndarray) -> np.ndarray:
    """Log odds of a probability, at most 14 either way."""
    safe = np.clip(chance, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(safe / (1 - safe)))


def _rates(ratios: np.ndarray) -> np.ndarray:
    """How common each kind is: the rates under which the mean posterior equals them (maximum likelihood)."""
    kinds = ratios.shape[1]
    rates = np.full(kinds, 0.3 / kinds)
    for _ in range(200 if len(ratios) else 0):
        logs = np.concatenate(
            [np.full((len(ratios), 1), np.log(1 - rates.sum())), ratios + np.log(rates)], axis=1
        )
        posterior = np.exp(logs - logs.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        before, rates = rates, np.maximum(posterior[:, 1:].mean(axis=0), RATE[0])
        rates *= min(1.0, RATE[1] / rates.sum())
        if np.abs(rates - before).max() < SETTLED:
            break
    return rates


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
