"""Noise by name, published recipes and our own; and flawing a share of masks in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskmend.errors import UsageError, unknown
from maskmend.noise.affine import Move
from maskmend.noise.automatic import RegionGrow, Scribbles
from maskmend.noise.base import Annotation, LabelNoise
from maskmend.noise.boundary import Dilate, EdgeCircles, Erode
from maskmend.noise.calibrate import ToChange
from maskmend.noise.cases import Recipe, case_rng, choose_cases, corrupt_cases
from maskmend.noise.components import Blank, DropComponents, Fracture, InventComponents, SwapClasses
from maskmend.noise.compose import Compose, InPixels, Nothing, OneOf, PerClass
from maskmend.noise.description import build
from maskmend.noise.elastic import Elastic
from maskmend.noise.markov import MarkovWalk
from maskmend.noise.outline import Polygon
from maskmend.noise.slices import EachSlice, SkipSlices

__all__ = ["PRESETS", "Preset", "case_rng", "choose_cases", "corrupt_labels", "make_noise", "preset"]


@dataclass(frozen=True)
class Preset:
    """A named noise.

    Args:
        noise: what to draw from.
        summary: one line for lists.
        source: where the recipe was published; empty: ours.
        ours: what the source does not say, or what we do otherwise.
        rate: share of the cases that the source flaws, where nobody says it.
    """

    noise: LabelNoise
    summary: str
    source: str = ""
    ours: str = ""
    rate: float = 0.5


_PICK = "Zhu et al., Pick-and-Learn, MICCAI 2019, arXiv 1907.11835 (chest X-ray, 0/25/50/75 % of the cases)"
_XRAY = "Zhang et al., Characterizing label errors, MICCAI 2020 (chest X-ray, 256 x 256, 30/50/70 %)"
_SUPERPIXEL = "Li et al., superpixel-guided iterative learning, MICCAI 2021, arXiv 2107.10100 (30/50/70 %)"
_MARKOV = "Yao et al., spatial correction, ICLR 2023, arXiv 2308.02498 (T 180, theta1 .8 or .2, theta2 .05)"
_PEOPLE = "Zhang et al., Disentangling human error from ground truth, NeurIPS 2020, arXiv 2007.15963"
_COCO = "Grad et al., Benchmarking label noise in instance segmentation (COCO-N), 2024, arXiv 2406.10891"
_OWN_NUMBERS = "The numbers are ours, the kind is theirs."


def _chest(clavicle: tuple[int, int], heart: tuple[int, int], lung: tuple[int, int]) -> LabelNoise:
    """Thirds of dilated, eroded and edge-distorted cases, radii by organ."""

    def thirds(make: Callable[..., LabelNoise]) -> LabelNoise:
        radii = {"clavicle": clavicle, "heart": heart, "lung": lung}
        return PerClass({name: make(radius_mm=radius, whole=True) for name, radius in radii.items()})

    return InPixels(OneOf((thirds(Dilate), thirds(Erode), thirds(EdgeCircles))), width=256)


def _either_box(least: int, most: int) -> LabelNoise:
    """Eroded or dilated by a box of odd side."""
    radius = (least, most)
    return OneOf((Erode(radius, box=True, whole=True), Dilate(radius, box=True, whole=True)))


def _coco(tolerance: float, jitter: float, flip: float) -> LabelNoise:
    drawn = PerClass(rest=Polygon((tolerance, tolerance), jitter))
    return Compose((InPixels(drawn, width=640), SwapClasses(flip)))


_STYLES: dict[str, LabelNoise] = {
    "good": Polygon((0.3, 0.6), jitter_mm=0.3),
    "over": Compose((Dilate((2.0, 4.0)), Polygon((0.5, 1.0), jitter_mm=0.5))),
    "under": Compose((Erode((1.5, 3.0)), Polygon((0.5, 1.0), jitter_mm=0.5))),
    "broken": Compose((EdgeCircles((2.0, 4.0), every_mm=20.0), Fracture((2, 4), (2.0, 4.0)))),
    "blank": Blank(),
}

_ANNOTATORS = {
    "good": "is careful",
    "over": "draws too wide",
    "under": "draws too tight",
    "broken": "leaves gaps, bites and bumps",
    "blank": "draws nothing",
}

PRESETS: dict[str, Preset] = {
    # one flaw at a time
    "dilate": Preset(Dilate(), "every outline too wide (biased)"),
    "erode": Preset(Erode(), "every outline too tight (biased)"),
    "move": Preset(Move(), "shifted and turned"),
    "scale": Preset(Move((0.0, 0.0), degrees=0.0, scale=(0.6, 1.5)), "too small or too large"),
    "mixed": Preset(OneOf((Dilate(), Erode(), Move())), "dilated, eroded or moved, a third each (unbiased)"),
    "edge-circles": Preset(EdgeCircles(), "bites and bumps along the outline"),
    "elastic": Preset(Elastic(), "outlines bent smoothly"),
    "polygon": Preset(Polygon(), "few vertices, none quite in its place"),
    "markov": Preset(
        OneOf((MarkovWalk(grow=0.8), MarkovWalk(grow=0.2))), "a drifting outline, outwards or inwards", _MARKOV
    ),
    "drop": Preset(DropComponents(0.5), "structures missed"),
    "invent": Preset(InventComponents(), "structures that are not there"),
    "swap": Preset(SwapClasses(0.3), "structures with another class's name"),
    "slices-interpolated": Preset(SkipSlices(), "every 2nd to 5th slice drawn, those between interpolated (3-D)"),
    "slices-empty": Preset(SkipSlices(fill="empty"), "every 2nd to 5th slice drawn, those between empty (3-D)"),
    "slices-repeated": Preset(SkipSlices(fill="repeat"), "every 2nd to 5th slice drawn and repeated (3-D)"),
    "auto-threshold": Preset(RegionGrow(), "labels of a region-growing tool", rate=1.0),
    "auto-scribbles": Preset(Scribbles(), "labels of a weak model fitted to scribbles", rate=1.0),
    # several annotators
    **{
        f"annotator-{style}": Preset(_STYLES[style], f"an annotator who {does}", _PEOPLE, _OWN_NUMBERS, 1.0)
        for style, does in _ANNOTATORS.items()
    },
    "annotators": Preset(
        OneOf(tuple(_STYLES.values()), (4, 3, 3, 2, 1)), "each case by one of the five annotators", _PEOPLE,
        f"{_OWN_NUMBERS} Good 4 : over 3 : under 3 : broken 2 : blank 1.", 1.0,
    ),
    "people": Preset(
        Compose((
            OneOf((Nothing(), Dilate((0.5, 2.0)), Erode((0.5, 2.0))), (2, 1, 1)), Elastic((0.5, 2.0)),
            Polygon((0.5, 2.0), 0.5), DropComponents(0.05),
        )),
        "a bit of everything that people do", rate=1.0,
    ),
    # published recipes
    "pick-and-learn-small": Preset(
        InPixels(OneOf((Erode((1, 8), whole=True), Dilate((1, 8), whole=True)))),
        "eroded or dilated by 1 to 8 pixels", _PICK,
    ),
    "pick-and-learn-large": Preset(
        InPixels(OneOf((Erode((5, 13), whole=True), Dilate((5, 13), whole=True)))),
        "eroded or dilated by 5 to 13 pixels", _PICK,
    ),
    "chest-xray-large": Preset(
        _chest((5, 10), (14, 20), (20, 30)), "lung, heart and clavicle by large radii: dilated, eroded, circles", _XRAY,
        "In pixels of a 256-pixel image, whatever the size of yours; the number of circles is ours.",
    ),
    "chest-xray-small": Preset(
        _chest((1, 8), (1, 8), (1, 8)), "lung, heart and clavicle by small radii: dilated, eroded, circles", _XRAY,
        "As the large one, with the radii of Pick-and-Learn's small noise.",
    ),
    "superpixel-morphology-50": Preset(
        ToChange(OneOf((Dilate((2, 5)), Erode((2, 5)))), 0.5), "dilated or eroded until half of the area changes",
        _SUPERPIXEL,
    ),
    "superpixel-morphology-70": Preset(
        ToChange(OneOf((Dilate((2, 5)), Erode((2, 5)))), 0.7), "dilated or eroded until 70 % of the area changes",
        _SUPERPIXEL,
    ),
    "superpixel-affine-50": Preset(
        ToChange(Move((2, 5), degrees=30.0), 0.5), "turned and shifted until half of the area changes", _SUPERPIXEL,
        "Turn and shift grow together until the change is reached; the source turns first.",
    ),
    "superpixel-affine-70": Preset(
        ToChange(Move((2, 5), degrees=30.0), 0.7), "turned and shifted until 70 % of the area changes", _SUPERPIXEL,
        "Turn and shift grow together until the change is reached; the source turns first.",
    ),
    "left-atrium": Preset(
        InPixels(_either_box(1, 7)),
        "box kernel of side 3 to 15 voxels", "Xu et al., MTCL, IEEE TMI 2022 (left atrium)",
        "Odd sides only. Cases marked as trusted stay clean.", 1.0,
    ),
    "adele": Preset(
        EachSlice(InPixels(_either_box(2, 4), area=1000)),
        "2 to 4 steps of a 3 x 3 kernel on slices scaled to 1000 foreground pixels",
        "Liu et al., ADELE, CVPR 2022, arXiv 2110.03740", "Each slice has its own draw.", 1.0,
    ),
    "markov-grow": Preset(MarkovWalk(grow=0.8), "an outline that drifts outwards", _MARKOV, "theta3 is 0.1.", 1.0),
    "markov-shrink": Preset(MarkovWalk(grow=0.2), "an outline that drifts inwards", _MARKOV, "theta3 is 0.1.", 1.0),
    "rmd": Preset(
        OneOf((
            InPixels(Elastic((1, 11))), Move((0.0, 0.0), degrees=45.0), Move((0.0, 0.0), 0.0, (0.8, 2.0)),
        )),
        "bent on a 5 x 5 grid, turned by up to 45 degrees, or zoomed by 0.8 to 2",
        "the RMD deformations: grid 5 x 5 with sigma 1 to 11, turn, zoom",
        "One of the three for each case; the grid spans the foreground's box. We know the recipe by its numbers only.",
    ),
    **{
        f"coco-n-{level}": Preset(
            _coco(*numbers), f"{level} noise of instance masks: polygons, jitter, class flips", _COCO,
            "In pixels of an image 640 wide. Tolerance {}, jitter {}, flips {}.".format(*numbers), 1.0,
        )
        for level, numbers in {"low": (5, 2, 0.2), "medium": (10, 3, 0.3), "high": (15, 4, 0.4)}.items()
    },
}  # fmt: skip
"""Every named noise."""

_RADIUS_MM = ("dilate", "erode", "move", "mixed")  # the presets that take a radius


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    if name not in PRESETS:
        raise unknown("noise", name, PRESETS, "noise")
    return PRESETS[name]


def make_noise(
    spec: str | Mapping[str, Any] | LabelNoise,
    radius_mm: Sequence[float] | None = None,
    degrees: float | None = None,
) -> LabelNoise:
    """A noise from a preset's name, a description (see `LabelNoise.describe`) or a noise.

    Args:
        spec: which noise.
        radius_mm: smallest and largest radius, for "dilate", "erode", "move" and "mixed" only.
        degrees: largest turn, for "move" and "mixed" only.
    """
    if not isinstance(spec, str):
        return build(spec, {name: known.noise for name, known in PRESETS.items()})
    noise, given = preset(spec).noise, {"radius_mm": radius_mm, "degrees": degrees}
    for key in (key for key, value in given.items() if value is not None):
        if spec not in (_RADIUS_MM if key == "radius_mm" else ("move", "mixed")):
            raise UsageError(f"is no setting of the noise {spec!r}", key, "describe the noise in a YAML file")
    radius = tuple(radius_mm or (2.0, 5.0))
    moved = Move(radius, degrees=20.0 if degrees is None else degrees)
    remade = {"dilate": Dilate(radius), "erode": Erode(radius), "move": moved}
    return remade[spec] if spec in remade else OneOf(tuple(remade.values())) if spec == "mixed" else noise


def corrupt_labels(
    cases: Mapping[str, np.ndarray],
    rate: float,
    kind: str | Mapping[str, Any] | LabelNoise = "mixed",
    radius_mm: Sequence[float] | None = None,
    seed: int = 0,
    *,
    spacing_mm: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    images: Mapping[str, np.ndarray] | None = None,
    names: Mapping[str, int] | None = None,
    degrees: float | None = None,
    **how: Any,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Flaw a share of the masks.

    Args:
        cases: mask (*S) by case id, 0 is background.
        rate: share of the cases that get a flaw, in [0, 1]; exactly round(rate * n) of them.
        kind: a key of `PRESETS`, a description, or a noise. "dilate" and "erode" are biased (always the same
            mistake), "mixed" is not.
        radius_mm, degrees: see `make_noise`.
        seed: any integer >= 0; with the case id it fixes the flaw.
        spacing_mm: voxel size for all cases, or by case id; None: 1 mm.
        images: (C, *S) by case id, for flaws that follow the image.
        names: class name to value, for flaws and targets that name classes.
        **how: target_dice, each, keep, classes, layered, ignore: see `maskmend.noise.cases.Recipe`.

    Returns:
        A mask by case id (those without a flaw are the arrays given), and the record: the settings, under
        "cases" what was done to each flawed case, and under "calibration" what was reached.

    Raises:
        UsageError: a setting out of range, an unknown name, or a target out of reach.
    """
    recipe = Recipe(make_noise(kind, radius_mm, degrees), rate, seed, **how)
    truths = []
    for name in choose_cases(cases, rate, seed):
        size = spacing_mm[name] if isinstance(spacing_mm, Mapping) else spacing_mm
        spacing = tuple(size or (1.0,) * cases[name].ndim)
        image = None if images is None else images[name]
        truths.append(Annotation(cases[name], spacing, image, recipe.layered, names or {}, name))
    done, reached = corrupt_cases(truths, recipe)
    record = {"settings": recipe.settings(), "cases": {name: facts for name, (_, facts) in done.items()}}
    labels = {**cases, **{name: label for name, (label, _) in done.items()}}
    return labels, record | ({"calibration": reached} if reached else {})
