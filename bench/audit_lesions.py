"""The audit where the question is whether an object is there: lesions painted into the heads of ultrasound images.

    python bench/audit_lesions.py train [--seeds 10,11,12,13,14] [--only "alone"]       # probabilities are kept on disk
    python bench/audit_lesions.py score [--seeds ...] [--only ...] [--table ...]
    python bench/audit_lesions.py report

One to three bright or dark spots in some of the heads, as a second class within the head or as the only class. Errors:
lesions left out or made up, outlines of lesions or of the head too wide, too tight or moved. The images are real, the
lesions are not: they are as distinct as chance makes them, so that models miss some and see others that are not there.
The sets within organs are judged twice: by models of 400 steps, which find few of the lesions, and of 1000.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import audit
import numpy as np
from audit_tables import mean_rows
from scipy import ndimage

TABLE = audit.RESULTS / "lesions.json"
CASES = 150
SIDE = 128  # pixels of the longer side of an image
RADIUS = (3.0, 8.0)  # pixels
CONTRAST = (60.0, 120.0)  # grey values of 255
BRIGHT = 0.8  # share of the lesions that are brighter than the head
DEPTH = 5  # pixels from the head's outline to a lesion's centre at least


@dataclass(frozen=True)
class Kind:
    """A kind of data set, and how its models are trained.

    Args:
        present: share of the heads that have lesions.
        organ: the head is a class too.
        steps: of training.
    """

    present: float
    organ: bool
    steps: int


KINDS = {
    "in organ": Kind(0.5, organ=True, steps=400),
    "alone": Kind(0.7, organ=False, steps=400),
    "longer in organ": Kind(0.5, organ=True, steps=1000),
}


def scenarios(seeds: Sequence[int]) -> list[tuple[str, audit.Scenario]]:
    """Each with how its name begins: its kind of data set."""
    found = []
    for name, kind in KINDS.items():
        data = "heads" if kind.steps == 400 else f"heads-{kind.steps}"
        settings = (*audit.FAST, f"train.steps={kind.steps}", "train.batch=8")
        audit.DATA[data] = replace(audit.DATA["hc18"], folder="heads", cases=CASES, settings=settings)
        found += [
            (f"lesions {name}", audit.Scenario(data, "assorted", audit.rate_of(seed), seed)) for seed in seeds
        ]
    return found


def paint(data: Path, folder: Path, start: str, scenario: audit.Scenario) -> None:
    """Write images, true masks, flawed masks and what is wrong with them."""
    from PIL import Image

    from maskmend.data.dataset import find_cases

    rng, kind = np.random.default_rng([scenario.seed, 60]), KINDS[start.removeprefix("lesions ")]
    out, facts = folder / "heads", {}
    for place in (out / "images", out / "labels", folder / "labels"):
        place.mkdir(parents=True, exist_ok=True)
    cases = find_cases(data / "hc18_fetal_head_2d").cases
    for number in sorted(rng.permutation(len(cases))[:CASES]):
        case = cases[number]
        assert case.label is not None
        image, mask = (Image.open(one).convert("L") for one in (case.images[0], case.label))
        size = [round(n * SIDE / max(image.size)) for n in image.size]
        head = np.array(mask.resize(size, Image.Resampling.NEAREST)) > 0
        grey = np.array(image.resize(size, Image.Resampling.BILINEAR), float)
        lesions = [_spot(head, rng) for _ in range(rng.integers(1, 4) if rng.random() < kind.present else 0)]
        for spot in lesions:
            contrast = rng.uniform(*CONTRAST) * (1 if rng.random() < BRIGHT else -1)
            grey += ndimage.gaussian_filter(spot.astype(float), 1) * (contrast + 8 * _waves(head.shape, rng))
        truth = _label(head, lesions, kind.organ)
        given, what = truth, ""
        if rng.random() < scenario.rate:
            given, what = _flawed(head, lesions, kind.organ, rng)
        if (given != truth).any():
            facts[case.id] = {"kind": what, "subtle": what not in ("drop", "invent")}
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(out / "images" / f"{case.id}.png")
        Image.fromarray(truth).save(out / "labels" / f"{case.id}.png")
        Image.fromarray(given).save(folder / "labels" / f"{case.id}.png")
    names = ["background", "head", "lesion"] if kind.organ else ["background", "lesion"]
    labels = {name: value for value, name in enumerate(names)}
    (folder / "errors.json").write_text(json.dumps(facts))
    (out / "maskmend.json").write_text(json.dumps({"labels": labels, "spacing_mm": [1.0, 1.0]}))


def _waves(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 2, mode="wrap")
    return np.asarray(smooth / smooth.std())


def _spot(head: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A wavy ellipse in the head, (*S) bool."""
    inner = ndimage.binary_erosion(head, iterations=DEPTH)
    y, x = rng.choice(np.argwhere(inner if inner.any() else head))
    radius, long = np.exp(rng.uniform(*np.log(RADIUS))), rng.uniform(0.75, 1.3)
    rows, columns = np.ogrid[: head.shape[0], : head.shape[1]]
    far = np.hypot((rows - y) * long, (columns - x) / long)
    return np.asarray((far < radius + 0.12 * radius * _waves(head.shape, rng)) & head)


def _label(head: np.ndarray, lesions: Sequence[np.ndarray], organ: bool) -> np.ndarray:
    label = head.astype(np.uint8) * organ
    for spot in lesions:
        label[spot] = 2 if organ else 1
    return label


def _flawed(
    head: np.ndarray, lesions: Sequence[np.ndarray], organ: bool, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """The label with one error, and which."""
    whose = ["lesion"] * (2 if lesions else 0) + ["head"] * organ + ["invent"]
    chosen = str(rng.choice(whose))
    if chosen == "invent":
        return _label(head, [*lesions, _spot(head, rng)], organ), "invent"
    what = str(rng.choice(["dilate", "erode", "move"] + ["drop"] * (3 if chosen == "lesion" else 0)))
    if what == "drop":
        kept = lesions[1:] if rng.random() < 0.5 else []
        return _label(head, kept, organ), what
    if chosen == "head":
        moved = _moved(head, what, 3)
        return _label(moved, [spot & moved for spot in lesions], organ), what
    return _label(head, [_moved(spot, what, 1 if what == "erode" else 2) for spot in lesions], organ), what


def _moved(mask: np.ndarray, what: str, far: int) -> np.ndarray:
    if what == "move":
        return np.roll(mask, (far, far), (0, 1))
    change = ndimage.binary_dilation if what == "dilate" else ndimage.binary_erosion
    return np.asarray(change(mask, iterations=far))


def report(table: Path) -> str:
    """Markdown: means over seeds, ± half a 95 % interval."""
    known = json.loads(table.read_text())
    lines = []
    for kind in KINDS:
        sets = [rows for name, rows in known.items() if name.startswith(f"lesions {kind} ")]
        if sets:
            lines += [f"lesions {kind}, {len(sets)} seeds", "", *mean_rows(sets), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    audit.run_made(__doc__, TABLE, scenarios, paint, report)
