"""Draw one small sheet per noise preset on synthetic phantoms: `python docs/noise_sheets.py [NAME ...]`.

With `--table` the rows of the table in `docs/noise.md` are printed instead.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmend.data.phantom import SPACING_MM, phantom_case
from maskmend.draw import GIVEN, TRUTH, Panel, grid, panel
from maskmend.errors import UsageError
from maskmend.noise.presets import PRESETS, corrupt_labels

OUT = Path(__file__).parent / "pictures" / "noise"
NAMES = {"background": 0, "organ": 1, "core": 2}
CHEST = {"background": 0, "lung": 1, "heart": 2, "clavicle": 3}
CORE = "#FF7AC8"
CASES, TARGET = 4, 0.8
GREYS, GAP = 16, 8  # shades, and white rows between pictures
WHOLE = ("drop", "invent", "swap")  # flaws of pieces rather than of outlines
# seeds that show what the preset can do: with few pieces, most seeds show too little or too much
SEEDS = {
    "drop": 6,
    "swap": 3,
    "coco-n-low": 6,
    "coco-n-medium": 6,
    "coco-n-high": 10,
    "annotators": 4,
    "rmd": 1,
}


def main() -> None:
    """Write the sheets of the presets named, else of all; or print the table."""
    if sys.argv[1:] == ["--table"]:
        print("\n".join(table_row(name) for name in PRESETS))
        return
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or PRESETS:
        _small(sheet(name)).save(OUT / f"{name}.png", optimize=True)


def table_row(name: str) -> str:
    """Name, Dice, summary, rate and source of a preset, as a row of Markdown."""
    low, middle, high = dice_range(name)
    one = PRESETS[name]
    text = f"{one.summary}. {one.ours}".rstrip(". ") + "."
    dice = f"{low:.2f}, **{middle:.2f}**, {high:.2f}"
    return f"| [`{name}`](pictures/noise/{name}.png) | {text} | {dice} | {one.rate:.0%} | {one.source or 'ours'} |"


def dice_range(name: str, count: int = 24) -> tuple[float, float, float]:
    """10th, 50th and 90th percentile of the Dice of organ and core over phantoms, as drawn."""
    record = _flawed(name, _phantoms(name, count), None, seed=0)[1]
    dice = [d for facts in record["cases"].values() for d in facts["dice"].values()]
    low, middle, high = np.quantile(dice, (0.1, 0.5, 0.9)).tolist()
    return low, middle, high


def sheet(name: str) -> bytes:
    """Four cases as drawn, and the same calibrated to a Dice of 0.8 where that can be."""
    cases = _phantoms(name, CASES)
    rows, titles = [_row(name, cases, None)], ["as drawn"]
    try:
        rows.append(_row(name, cases, TARGET))
        titles.append(f"Dice {TARGET}")
    except UsageError:
        pass  # out of reach: a blank label is a blank label
    legend = [("true label", TRUTH, "-"), ("flawed organ", GIVEN, "-"), ("flawed core", CORE, "-")]
    return grid(rows, names=titles, legend=legend, width=1.25)


Cases = dict[str, tuple[np.ndarray, np.ndarray]]
"""Image (1, *S) and label (*S) by case."""


def _phantoms(name: str, count: int) -> Cases:
    ndim = 3 if name.startswith("slices") else 2
    return {f"c{i}": phantom_case(np.random.default_rng([11, ndim, i]), ndim) for i in range(count)}


def _flawed(
    name: str, cases: Cases, target: float | None, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    images, labels = ({key: pair[i] for key, pair in cases.items()} for i in (0, 1))
    spacing = SPACING_MM[next(iter(labels.values())).ndim]
    names = CHEST if name.startswith("chest") else NAMES
    return corrupt_labels(
        labels, 1.0, name, seed=seed, spacing_mm=spacing, images=images, target_dice=target,
        layered=name not in WHOLE, names=names,
    )  # fmt: skip


def _row(name: str, cases: Cases, target: float | None) -> list[Panel]:
    flawed, record = _flawed(name, cases, target, SEEDS.get(name, 2))
    panels = []
    for key, facts in record["cases"].items():
        image, true = cases[key]
        image, true, given = (a if true.ndim == 2 else _side(a) for a in (image[0], true, flawed[key]))
        title = "Dice " + " / ".join(f"{dice:.2f}" for dice in facts["dice"].values())
        lines = [
            (true, TRUTH, "-"),
            (np.where(given == 1, 1, 0), GIVEN, "-"),
            (np.where(given == 2, 1, 0), CORE, "-"),
        ]
        panels.append(panel(image, lines, title=title, spacing_mm=SPACING_MM[flawed[key].ndim][:2]))
    return panels


def _side(volume: np.ndarray) -> np.ndarray:
    """A volume seen across its slices, which run along axis 0."""
    return volume[:, :, volume.shape[2] // 2 - 5]


def _small(png: bytes) -> Image.Image:
    """Few colours: greys, and each line's colour fading into dark and light, so that lines stay what they are."""
    ends = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in (TRUTH, GIVEN, CORE)]
    greys = [(level, level, level) for level in np.linspace(0, 255, GREYS).astype(int).tolist()]
    mixed = [
        tuple(round(share * c + (1 - share) * grey) for c in end)
        for end in ends
        for grey in (0, 85, 170, 255)
        for share in (0.33, 0.67, 1.0)
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette([c for colour in greys + mixed for c in colour])
    dense = _without_gaps(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
    return Image.fromarray(dense).quantize(palette=palette, dither=Image.Dither.NONE)


def _without_gaps(pixels: np.ndarray) -> np.ndarray:
    """No more than a few white rows in a run."""
    white = (pixels == 255).all((1, 2))
    run = np.zeros(len(white), int)
    for row in range(1, len(white)):
        run[row] = run[row - 1] + 1 if white[row] else 0
    return pixels[run <= GAP]


if __name__ == "__main__":
    main()
