"""What an audit says of a case: plain figures, ready for JSON. Made by the estimators, read by tables and report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Kind = Literal[
    "sound",  # no error worth a look
    "over-drawn",
    "under-drawn",
    "shifted",
    "missing object",
    "invented object",
    "swapped class",
    "wrong slice range",
    "left-right flip",
    "wrong file",  # image and mask are of different cases
    "mixed",  # several of the above, none of them most of the error
]


@dataclass(frozen=True)
class ClassRecord:
    """One class of one case.

    Args:
        name: of the class.
        given_voxels, suggested_voxels: how many voxels each mask has of it.
        estimated_dice: of the given mask against the unknown truth, in [0, 1]; None where neither has the class.
        dice_low, dice_high: its 90 % interval; None likewise.
        wrong_share: expected wrong voxels (false and missing ones) per given or missing voxel, in [0, 1].
        offset_mm: mean signed distance by which the given outline lies outside the estimated one.
        kind: of this class's error.
    """

    name: str
    given_voxels: int
    suggested_voxels: int
    estimated_dice: float | None
    wrong_share: float
    offset_mm: float | None
    kind: Kind
    dice_low: float | None = None
    dice_high: float | None = None


@dataclass(frozen=True)
class ComponentRecord:
    """One connected part of a class: drawn, or suggested where nothing of it is drawn.

    Args:
        name: of the class.
        present: whether the given mask has it.
        voxels: its size.
        probability: that it is wrongly drawn (`present`) or wrongly left out as a whole; 0 where mask and suggestion
            have it in common.
        centre: array index (*S) of its middle.
        quality: estimated Dice of the given mask around it, in [0, 1]; of a part that is doubted as a whole how likely
            the mask is right.
        quality_low, quality_high: its 90 % interval.
        wrong_share: expected wrong voxels (false and missing ones) per given or missing voxel, in [0, 1].
        kind: of its error.
    """

    name: str
    present: bool
    voxels: int
    probability: float
    centre: tuple[int, ...]
    quality: float
    quality_low: float
    quality_high: float
    wrong_share: float
    kind: Kind


@dataclass(frozen=True)
class StructureFinding:
    """What is odd about a mask by itself, without any model.

    Args:
        check: short name, e.g. "holes".
        name: of the class, "" for the whole mask.
        text: one sentence with the figures.
        severity: in [0, 1]; 1 is certainly a slip.
        centre: array index (*S) of where to look, None for the whole mask.
    """

    check: str
    name: str
    text: str
    severity: float
    centre: tuple[int, ...] | None = None


@dataclass(frozen=True)
class CaseRecord:
    """One case of an audit.

    Args:
        case: id.
        priority: by which cases are sorted, worst first: `flawed` times the Dice that is missing to 1, in [0, 1].
        quality: estimated Dice of the given mask, mean over its classes, in [0, 1].
        quality_low, quality_high: its 90 % interval.
        flawed: probability that the mask has an error worth mending, in [0, 1].
        wrong_voxels: expected number of wrong voxels.
        wrong_share: the same per voxel of given or suggested foreground.
        kind: of the main error; `kind_probability` in [0, 1] says how sure.
        worst: array index (*S) of the middle of the worst region, None for a sound mask.
        in_sample: the model that judges has seen this case with this mask.
        rater, site, group: as the data set names them.
        image, label, noise_map, suggested: paths relative to the audit folder or absolute; None: not written. The
            noise map lies in [0, 1], or in integers of which 255 stands for 1.
        spacing_mm, shape: of the image grid, array order.
        remark: what else is to be said, e.g. which case the mask seems to be of.
    """

    case: str
    priority: float
    quality: float
    quality_low: float
    quality_high: float
    flawed: float
    wrong_voxels: float
    wrong_share: float
    kind: Kind
    kind_probability: float
    worst: tuple[int, ...] | None = None
    in_sample: bool = False
    rater: str = ""
    site: str = ""
    group: str = ""
    image: str | None = None
    label: str | None = None
    noise_map: str | None = None
    suggested: str | None = None
    spacing_mm: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    classes: tuple[ClassRecord, ...] = ()
    components: tuple[ComponentRecord, ...] = ()
    structure: tuple[StructureFinding, ...] = field(default=())
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        """Nested plain values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> CaseRecord:
        """The record that `to_json` wrote, also after a trip through a JSON file."""
        known = {one.name for one in fields(cls)}
        values = {key: value for key, value in plain.items() if key in known}
        for key in ("worst", "spacing_mm", "shape"):
            values[key] = None if values.get(key) is None else tuple(values[key])
        parts = {"classes": ClassRecord, "components": ComponentRecord, "structure": StructureFinding}
        for key, kind in parts.items():
            values[key] = tuple(kind(**_centred(one)) for one in values.get(key, ()))
        return cls(**values)


def _centred(plain: dict[str, Any]) -> dict[str, Any]:
    centre = plain.get("centre")
    return plain | {"centre": tuple(centre)} if centre is not None else plain
