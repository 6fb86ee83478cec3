"""The masks of a data set that can be compared with one another."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import NamedTuple

from maskmend.config import DataConfig
from maskmend.data.case import Case, Dataset
from maskmend.data.plan import MOST_CLASSES
from maskmend.errors import DataError, UsageError
from maskmend.progress import message

WARNINGS = 5  # of the check's, shown


class Masks(NamedTuple):
    """The cases that can be compared.

    Args:
        dataset: that they are of.
        cases: with a mask, sorted by id.
        largest: shape of the data set's largest image.
    """

    dataset: Dataset
    cases: tuple[Case, ...]
    largest: tuple[int, ...]


def open_masks(source: Path, data: DataConfig, least: int, too_few: str) -> Masks:
    """Check a data set and give its training cases with a mask, sorted by id.

    Args:
        source: a data set in any layout.
        data: how to read it.
        least: how many cases must have a mask.
        too_few: what cannot be done with fewer; `{count}` stands for how many there are.

    Raises:
        DataError: faults of the data, or too few masks.
        UsageError: too many classes.
    """
    from maskmend.data.check import check

    result = check(source, data=data, quick=True)
    result.raise_errors()
    for finding in result.warnings[:WARNINGS]:
        message(f"warning: {finding.line()}")
    dataset = result.dataset
    assert dataset is not None
    refuse_many_classes(dataset)
    cases = tuple(sorted((case for case in dataset.train if case.label), key=lambda case: case.id))
    if len(cases) < least:
        fact = too_few.format(count=len(cases))
        raise DataError(fact, dataset.root, "look at them one by one (`maskmend check --sheet`)")
    return Masks(dataset, cases, max((facts.shape for facts in result.facts if facts.shape), key=prod))


def refuse_many_classes(dataset: Dataset) -> None:
    """Class indices must fit a byte.

    Raises:
        UsageError: they do not.
    """
    if len(dataset.labels) > MOST_CLASSES:
        fact = f"{len(dataset.labels)} classes; masks of at most {MOST_CLASSES} can be compared"
        raise UsageError(
            fact, dataset.root, "merge classes, or give each class of interest a data set of its own"
        )
