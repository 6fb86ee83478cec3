"""How likely an object that only the mask or only the model has makes the mask wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from maskmend.audit.evidence import Evidence
from maskmend.audit.objects import Lone

SLOPE = 1.5  # log odds by confidence
DENIED = 4.0  # confidence at which a drawn object that the model denies is as likely wrong as not: models miss a lot,
SEEN = 2.0  # and at which one that it sees alone is
SMALL = 0.2  # of the class's usual volume: smaller objects are doubted less, by the log of what is lacking
NEARLY_ALL = 0.9  # share of the masks
MOST_INVENTED, MOST_MISSED = 0.15, 0.3  # of a class's drawn objects may be wrong, or lack beside them


@dataclass(frozen=True)
class Presence:
    """Tells whether lone objects are errors.

    Args:
        volumes: (K - 1,) usual volume of what is drawn of each class, mm2 or mm3.
        habit: (2, K - 1) by how much the odds of drawn (first) and of seen objects are lowered, because the model
            denies so many or sees so many more that not all can be errors.
        common: (K - 1,) log odds that a class is there, of classes that nearly all masks have, blank ones apart: a mask
            without it is suspect; 0 of others.
    """

    volumes: np.ndarray
    habit: np.ndarray
    common: np.ndarray

    @classmethod
    def of(cls, cases: Sequence[Evidence], volumes: np.ndarray) -> Presence:
        """Fitted to the cases of a data set."""
        told = np.array([case.objects for case in cases if case.drawn]).reshape(-1, len(volumes))
        there = (np.count_nonzero(told, axis=0) + 1) / (len(told) + 2)
        common = np.where(there > NEARLY_ALL, np.log(there / (1 - there)), 0)
        plain = cls(volumes, np.zeros((2, len(volumes))), common)
        every = [one for case in cases if not case.one_sided for one in case.lone]
        drawn = np.sum([case.objects for case in cases], axis=0)
        habit = np.zeros_like(plain.habit)
        for index in range(len(volumes)):
            for row, most in enumerate((MOST_INVENTED, MOST_MISSED)):
                odds = [
                    plain.odds(one) for one in every if one.index == index + 1 and one.drawn == (row == 0)
                ]
                habit[row, index] = lowered(np.array(odds), most * max(float(drawn[index]), 1.0))
        return cls(volumes, habit, common)

    def odds(self, one: Lone) -> float:
        """Log odds that the mask is wrong there."""
        index = one.index - 1
        small = np.log(one.volume / (one.volume + SMALL * self.volumes[index]))
        sure = SLOPE * (one.confidence - (DENIED if one.drawn else SEEN))
        common = self.common[index] if one.first else 0.0
        return float(sure + small + common - self.habit[0 if one.drawn else 1, index])

    def joined(self, odds: float, lone: Sequence[Lone]) -> float:
        """Log odds that a mask is wrong in its outlines, by these `odds`, or in one of its lone objects.

        Of drawn and of seen objects the worst counts: many of one case are one habit of the model.
        """
        doubted = [
            odds,
            *(max((self.odds(o) for o in lone if o.drawn == d), default=-np.inf) for d in (True, False)),
        ]
        sound = -np.logaddexp(0, doubted).sum()
        return max(odds, float(np.log(-np.expm1(sound)) - sound))


def lowered(odds: np.ndarray, most: float) -> float:
    """By how much log odds (N,) must be lowered for their probabilities to sum to `most`, > 0; 0 where they do not
    sum to more."""
    low, high = 0.0, 30.0
    if not len(odds) or expit(odds - low).sum() <= most:
        return low
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(odds - middle).sum() > most else (low, middle)
    return high
