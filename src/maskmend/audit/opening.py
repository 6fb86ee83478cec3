"""The masks of a data set that can be compared with one another."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import NamedTuple

from maskmend.config import DataConfig
from maskmend.data.case import Case, Dataset
from maskmend.errors import DataError
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
    """
    from maskmend.data.check import check

    result = check(source, data=data, quick=True)
    result.raise_errors()
    for finding in result.warnings[:WARNINGS]:
        message(f"warning: {finding.line()}")
    dataset = result.dataset
    assert dataset is not None
    cases = tuple(sorted((case for case in dataset.train if case.label), key=lambda case: case.id))
    if len(cases) < least:
        fact = too_few.format(count=len(cases))
        raise DataError(fact, dataset.root, "look at them one by one (`maskmend check --sheet`)")
    return Masks(dataset, cases, max((facts.shape for facts in result.facts if facts.shape), key=prod))
