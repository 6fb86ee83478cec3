"""Opens cases for the audit: their masks, and the looks made of these and of probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskmend.audit.kept import Kept
from maskmend.audit.look import Look, look_at
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.images import read_label
from maskmend.errors import DataError


@dataclass(frozen=True)
class LooksOf:
    """Opens the looks of cases by their ids; travels to other processes.

    Args:
        cases: by id.
        dataset: names the classes, the ignore value and the spacing.
        probs: gives (K, *S) for a case and its mask (*S) of class indices.
        kept: where looks that may be asked for again are kept; None: nowhere.
    """

    cases: Mapping[str, Case]
    dataset: Dataset
    probs: Callable[[Case, np.ndarray], np.ndarray]
    kept: Kept | None = None

    def __call__(self, ids: Sequence[str]) -> Iterator[Look]:
        """In this order, one at a time.

        Raises:
            DataError: shapes that do not belong together, or a value that is no class.
        """
        return (self._again(case) or self._opened(case) for case in ids)

    def with_mask(self, case: Case) -> tuple[Look, np.ndarray, np.ndarray | None, Geometry]:
        """The look of a case that is not asked for again, and its mask.

        Returns:
            The look; file values (*S); where they are known, (*S) bool or None for everywhere; the mask's geometry.

        Raises:
            DataError: shapes that do not belong together, or a value that is no class.
        """
        values, geometry, label, valid = read_mask(case, self.dataset)
        look = self._again(case.id) or self._of(case, geometry, label, valid)
        return look, values, valid, geometry

    def _again(self, case: str) -> Look | None:
        return self.kept.read(case) if self.kept else None

    def _opened(self, case: str) -> Look:
        look = self._of(self.cases[case], *read_mask(self.cases[case], self.dataset)[1:])
        if self.kept:
            self.kept.write(look)
        return look

    def _of(self, case: Case, geometry: Geometry, label: np.ndarray, valid: np.ndarray | None) -> Look:
        found = self.probs(case, label)
        wanted = (len(self.dataset.labels), *label.shape)
        if found.shape != wanted:
            fact = f"probabilities of shape {found.shape} where {wanted} (classes, then the mask's axes) are needed"
            raise DataError(fact, case.id, "give probabilities on the grid of the image")
        return look_at(case.id, found, label, self.dataset.spacing_mm or geometry.spacing_mm, valid)


def read_mask(case: Case, dataset: Dataset) -> tuple[np.ndarray, Geometry, np.ndarray, np.ndarray | None]:
    """A case's mask: file values (*S), geometry, class indices (*S), and where they are known (None: everywhere)."""
    assert case.label is not None
    values, geometry = read_label(case.label, spacing_mm=dataset.spacing_mm)
    label, valid = class_indices(values, dataset, case.id)
    if case.ignore is not None:
        here = read_label(case.ignore, spacing_mm=dataset.spacing_mm)[0] == 0
        valid = here if valid is None else valid & here
    return values, geometry, label, valid


def class_indices(values: np.ndarray, dataset: Dataset, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """File values (*S) as class indices (*S) uint8, and where they are known (None: everywhere)."""
    label, known = np.zeros(values.shape, np.uint8), np.zeros(values.shape, bool)
    for index, value in enumerate(dataset.labels.values()):
        here = values == value
        label[here] = index
        known |= here
    if known.all():
        return label, None
    strange = np.unique(values[~known])
    strange = strange[strange != dataset.ignore] if dataset.ignore is not None else strange
    if len(strange):
        fact = f"the mask holds the value(s) {', '.join(map(str, strange[:5]))}, which are no class"
        raise DataError(fact, where, f"the classes are {dict(dataset.labels)}; name others in data.labels")
    return label, known
