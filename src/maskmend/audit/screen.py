"""The screen verb: which outlines do the images not explain? No model and no training."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskmend.audit.mending import free_folder, mended
from maskmend.audit.opening import open_masks
from maskmend.audit.outlines import FOLLOWS, ImageWitness, look_at_outlines
from maskmend.config import DataConfig
from maskmend.convention import LEAST_CASES
from maskmend.data.atomic import atomic_folder
from maskmend.data.case import Case, Dataset
from maskmend.fanout import most_processes, spread

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 20
BYTES = 60  # of memory for each voxel, while a case is looked at
CASE_S, VOXEL_S = 0.012, 5e-8  # for one process, per case and voxel: by this it is decided how many


@dataclass(frozen=True)
class Screened:
    """One mask, as the image sees it.

    Args:
        case: id.
        odds: log of how much likelier the outline is a flawed than a sound one, before it is known how many are flawed.
        unexplained: share of the outline that the looks of other outlines leave unexplained, 0 none, 1 or more all.
        convention: how likely it follows the convention that the images explain best, in [0, 1]; 1 for all where
            there is one convention only.
        mirrored: how sure it is that the mask is mirrored, in [0, 1]; 0: it fits no better so.
        label: the mask's path.
    """

    case: str
    odds: float
    unexplained: float
    convention: float
    mirrored: float
    label: str


@dataclass(frozen=True)
class Screening:
    """All masks with an outline, the most suspicious first.

    Args:
        cases: the masks.
        silent: ids of cases of which the images say nothing (empty masks).
        mended: how far outwards the outlines of written masks went, in mm (pixels where no spacing is known; 0 for the
            mirrored), by case; None: it was not asked for.
    """

    cases: tuple[Screened, ...]
    silent: tuple[str, ...]
    mended: dict[str, float] | None = None

    def verdict(self) -> str:
        """What came out, in one sentence."""
        others = sum(one.convention < FOLLOWS for one in self.cases)
        verdict = (
            f"one way of drawing in {len(self.cases)} masks; the first in the list fit their images least"
        )
        if others:
            verdict = f"{others} of {len(self.cases)} masks are drawn otherwise than the images explain best"
        if flipped := sum(one.mirrored > 0 for one in self.cases):
            verdict += f"; {flipped} mirrored"
        return verdict if self.mended is None else f"{verdict}; {len(self.mended)} mended"

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "verdict": self.verdict(),
            "cases": [asdict(one) for one in self.cases],
            "silent": list(self.silent),
            **({} if self.mended is None else {"mended": self.mended}),
        }

    def to_csv(self) -> str:
        """One line per mask, worst first."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(Screened.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in self.cases)
        return text.getvalue()

    def to_table(self) -> Table:
        """The worst cases for the terminal."""
        from rich.table import Table

        table = Table(title=self.verdict(), title_justify="left")
        table.add_column("case", overflow="fold")
        several = any(one.convention < FOLLOWS or one.mirrored > 0 for one in self.cases)
        for name in ("odds", "unexplained", *(["best convention"] if several else [])):
            table.add_column(name, justify="right")
        for one in self.cases[:SHOWN]:
            last = ["mirrored" if one.mirrored > 0 else f"{one.convention:.0%}"] if several else []
            table.add_row(one.case, f"{one.odds:+.1f}", f"{one.unexplained:.0%}", *last)
        return table


def screen(
    source: Path | str,
    data: DataConfig | None = None,
    *,
    mend: Path | str | None = None,
    processes: int | None = 1,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Screening:
    """Rank the masks of a data set by how little their images explain them.

    It sees outlines that run beside the boundary (too large, too small, shifted, of another case). It does not see a
    missing object or two classes that are swapped, and says nothing of where a mask is wrong: for these there is
    `audit`. A flaw that most masks share and that follows an edge of its own passes for the convention.

    Args:
        source: a data set in any layout.
        data: how to read it.
        mend: a new folder for masks of suspects, drawn wider, tighter or mirrored to where the images explain them;
            only those that are then explained about as well as the others. The given masks stay as they are.
        processes: that look at cases, each holding one in memory; None: one for each core, as far as memory goes. A
            script that asks for several needs `if __name__ == "__main__":`.
        progress: called with how many cases are done and how many there are.

    Raises:
        DataError: faults of the data, or fewer than 20 masks. UsageError: there is something in `mend`.
    """
    folder = None if mend is None else free_folder(Path(mend))
    settings = data or DataConfig()
    too_few = f"{{count}} cases with a mask; fewer than {LEAST_CASES} cannot be compared"
    dataset, cases, largest = open_masks(Path(source), settings, LEAST_CASES, too_few)
    voxels = prod(largest)
    done = count(1)
    over = spread(
        processes or most_processes(len(cases) * (CASE_S + VOXEL_S * voxels), BYTES * voxels / 2**30)
    )
    witness = look_at_outlines(
        cases,
        dataset,
        max_voxels=settings.max_voxels,
        progress=lambda: progress(next(done), len(cases)),
        over=over,
    ).witness()
    silent = tuple(case.id for case in cases if case.id not in witness.odds)
    doubted = [case for case in cases if witness.doubts(case.id)]
    bare = replace(dataset, cases=())
    mirrored, moved = {}, {}
    with nullcontext() if folder is None else atomic_folder(folder, partial(free_folder, folder)) as place:
        work = partial(_mended, bare, witness, settings.max_voxels, place)
        for case, better in zip(doubted, over(work, doubted), strict=True):
            if better is None:
                continue
            if better[0] > 0:
                mirrored[case.id] = round(better[0], 4)
            moved[case.id] = round(better[1], 3)
    found = [
        Screened(
            case.id,
            round(witness.odds[case.id], 4),
            round(witness.unexplained[case.id], 4),
            round(witness.convention[case.id], 4),
            mirrored.get(case.id, 0.0),
            str(case.label),
        )
        for case in cases
        if case.id in witness.odds
    ]
    ranked = tuple(sorted(found, key=lambda one: (-one.odds, -one.unexplained, one.case)))
    return Screening(ranked, silent, None if folder is None else moved)


def _mended(
    dataset: Dataset, witness: ImageWitness, max_voxels: int, folder: Path | None, case: Case
) -> tuple[float, float] | None:
    """How sure it is that a mask is mirrored, and how far its outline went outwards, written if there is a folder."""
    move = folder is not None and witness.disbelieves(case.id)
    better = mended(case, dataset, witness, max_voxels=max_voxels, move=move)
    if better is None:
        return None
    if folder is not None:
        better.write(case, folder)
    return better.mirrored, better.outwards
