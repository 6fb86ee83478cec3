"""What an audit has learnt, kept beside its answer, so that later masks are judged without training or fitting.

New masks come in batches, mended ones come back. Both are judged by the models and the measures of the audit before,
one mask if need be, and its figures compare with those of then.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from maskmend.appearance import FEATURES
from maskmend.audit.calibration import Calibration
from maskmend.audit.estimate import Auditor
from maskmend.audit.evidence import SURPRISES, signed_names
from maskmend.audit.outlines import ImageWitness, Outlines
from maskmend.audit.population import Judge, Ratios, Usual, inputs_count
from maskmend.audit.presence import Presence
from maskmend.audit.selfcheck import Answer, SelfCheck
from maskmend.audit.voxels import COLUMNS, VoxelJudge
from maskmend.config import AxesOrder
from maskmend.data.atomic import atomic_write
from maskmend.data.case import Case
from maskmend.errors import DataError, UsageError
from maskmend.plain import plain
from maskmend.pseudonyms import clean_paths

LEARNT = "learnt.safetensors"
FORMAT = "maskmend learnt 5"
Arrays = Mapping[str, np.ndarray]
Share = Annotated[float, Field(ge=0, le=1)]


class Story(BaseModel):
    """What is no array. Cases are named by their ids.

    Args:
        format: of the file.
        source: whose probabilities these were: "folds", "run" or "files".
        place: of the run; None for others. model: `Run.digest` of it, "" for others.
        turned: arrays of files lie xyz where both ways fit, see `ProbsFolder`; None: not known.
        axes: the setting `audit.axes` of then.
        in_sample: the run had learnt these masks.
        hidden: cases go by pseudonyms (`--phi-safe`).
        labels: class name to file value, background first.
        ndim: axes of an image.
        folds: for each case and group of cases, see `fold_key`, the fold whose model has not seen it.
        kinds, rate, empty, seen_in_empty, usual_overlap: as of `Judge` and `Auditor`.
        answers: of the exam. exam_rate, exam_inexact: see `SelfCheck`.
        outlines: cases of the rows of looks.
        expected, scale: of the images' witness; None where there were too few outlines for one.
        volumes_mm3: of each class as given, by case.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    format: str
    source: Literal["folds", "run", "files"]
    place: str | None
    model: str = ""
    turned: bool | None = None
    axes: AxesOrder = "auto"
    in_sample: bool
    hidden: bool
    labels: Annotated[dict[str, int], Field(min_length=2)]
    ndim: Literal[2, 3]
    folds: dict[str, Annotated[int, Field(ge=0)]]
    kinds: list[str]
    rate: Share
    empty: Annotated[float, Field(gt=0, lt=1)]
    seen_in_empty: Share
    usual_overlap: Share
    answers: list[Answer]
    exam_rate: Share
    exam_inexact: Share
    outlines: list[str]
    expected: float
    scale: tuple[float, Annotated[float, Field(gt=0)]] | None
    volumes_mm3: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Learnt:
    """An audit's models and measures.

    Args:
        source, place, model, turned, axes, in_sample, hidden, labels, ndim, folds, volumes_mm3: see `Story`.
        auditor: fitted; it remembers no cases.
        check: the exam that it sat.
        outlines: of all cases, as the images show them.
        expected, scale: by how much flawed outlines are the worse explained, see `ImageWitness`.
    """

    source: str
    place: Path | None
    model: str
    turned: bool | None
    axes: AxesOrder
    in_sample: bool
    hidden: bool
    labels: Mapping[str, int]
    ndim: int
    folds: Mapping[str, int]
    auditor: Auditor
    check: SelfCheck
    outlines: Outlines
    expected: float
    scale: tuple[float, float] | None
    volumes_mm3: Mapping[str, Mapping[str, float]]

    def witness(self, outlines: Outlines) -> ImageWitness:
        """What the images say of new outlines beside all that were looked at before; a case of both is the new one.

        Raises:
            DataError: images with another number of channels.
        """
        before, new = (next(iter(one.looks.values())).shape[1] for one in (self.outlines, outlines))
        if before != new:
            fact = f"images of {new // FEATURES} channel(s), the earlier audit's had {before // FEATURES}"
            raise DataError(fact, next(iter(outlines.looks)), "audit them by themselves")
        return self.outlines.with_others(outlines).witness().expecting(self.expected, self.scale)

    def fold_of(self, case: Case) -> int:
        """The fold whose model has not seen a case, or else its patient; of a new one any, and always the same."""
        keys = [fold_key(case.id, None), *([fold_key("", case.group)] if case.group else [])]
        known = [self.folds[key] for key in keys if key in self.folds]
        return known[0] if known else zlib.crc32(keys[-1].encode()) % (1 + max(self.folds.values()))

    def write(self, path: Path) -> None:
        """Into a file; atomically."""
        story, arrays = self._parts()
        content = save(
            {name: np.ascontiguousarray(one) for name, one in arrays.items()},
            {"maskmend": clean_paths(json.dumps(plain(story), ensure_ascii=False))},
        )
        atomic_write(path, lambda temporary: temporary.write_bytes(content))

    def _parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What `Story` says, and the arrays."""
        auditor, judge = self.auditor, self.auditor.population
        ids = list(self.outlines.looks)
        story = {
            "format": FORMAT, "source": self.source, "place": str(self.place) if self.place else None,
            "model": self.model, "turned": self.turned, "axes": self.axes, "in_sample": self.in_sample,
            "hidden": self.hidden,
            "labels": dict(self.labels), "ndim": self.ndim, "folds": dict(self.folds), "kinds": judge.kinds,
            "rate": judge.rate, "empty": judge.empty,
            "seen_in_empty": judge.seen_in_empty, "usual_overlap": auditor.usual_overlap,
            "answers": [asdict(one) for one in self.check.answers], "exam_rate": self.check.rate,
            "exam_inexact": self.check.inexact,
            "outlines": ids, "expected": self.expected, "scale": self.scale,
            "volumes_mm3": {case: dict(one) for case, one in self.volumes_mm3.items()},
        }  # fmt: skip
        width = inputs_count(len(self.labels), self.ndim)
        by_kind, together = (
            one or Ratios(np.zeros((0, 1 + width)), np.zeros(0)) for one in (judge.by_kind, judge.together)
        )
        return story, {
            "scale": np.array([auditor.calibration.scale]), "bias": auditor.calibration.bias,
            "surprises": judge.usual.surprises, "signed": judge.usual.signed,
            "doubts": judge.usual.doubts, "seen": judge.usual.seen,
            "by_kind": by_kind.weights, "by_kind_rates": by_kind.rates,
            "together": together.weights, "together_rates": together.rates,
            "voxels": auditor.voxels.weights, "volumes": judge.presence.volumes,
            "habit": judge.presence.habit, "common": judge.presence.common, **self.outlines.arrays(),
        }  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Learnt:
        """From a file; numbers and names only, nothing in it is executed.

        Raises:
            UsageError: damaged, of another version, or not of one piece.
        """
        try:
            with safe_open(path, framework="np") as file:
                told = json.loads((file.metadata() or {}).get("maskmend", "{}"))
                if told.get("format") != FORMAT:
                    fact = f"has format {told.get('format')!r}, this is {FORMAT!r}"
                    raise UsageError(fact, path, "audit that data set again")
                story = Story(**told)
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls._of(story, arrays)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as fault:
            why = (str(fault) or type(fault).__name__).splitlines()[0][:200]
            if isinstance(fault, ValidationError):
                first = fault.errors()[0]
                why = f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg'][:120]}"
            raise UsageError(
                f"is not what an audit has learnt ({why})", path, "audit that data set again"
            ) from fault

    @classmethod
    def _of(cls, story: Story, arrays: Arrays) -> Learnt:
        _check_shapes(story, arrays)
        by_kind, together = (
            Ratios(arrays[name], arrays[f"{name}_rates"]) if len(arrays[name]) else None
            for name in ("by_kind", "together")
        )
        usual = Usual(arrays["surprises"], arrays["signed"], arrays["doubts"], arrays["seen"])
        judge = Judge(
            usual,
            tuple(story.kinds),
            by_kind,
            together,
            np.zeros(0),
            story.rate,
            story.empty,
            story.seen_in_empty,
            Presence(arrays["volumes"], arrays["habit"], arrays["common"]),
        )
        auditor = Auditor(
            Calibration(float(arrays["scale"][0]), arrays["bias"]),
            judge,
            VoxelJudge(arrays["voxels"]),
            story.usual_overlap,
        )
        check = SelfCheck(tuple(story.answers), story.exam_rate, story.exam_inexact)
        return cls(
            source=story.source,
            place=Path(story.place) if story.place else None,
            model=story.model,
            turned=story.turned,
            axes=story.axes,
            in_sample=story.in_sample,
            hidden=story.hidden,
            labels=story.labels,
            ndim=story.ndim,
            folds=story.folds,
            auditor=auditor,
            check=check,
            outlines=Outlines.of(story.outlines, arrays),
            expected=story.expected,
            scale=story.scale,
            volumes_mm3=story.volumes_mm3,
        )


def fold_key(case: str, group: str | None) -> str:
    """What a case or a group of cases (a patient) is called in `Learnt.folds`."""
    return f"case {case}" if group is None else f"group {group}"


def fold_numbers(parts: Sequence[Sequence[Case]]) -> dict[str, int]:
    """`Learnt.folds` of the cases that each fold's model has not seen."""
    found = {}
    for number, cases in enumerate(parts):
        for case in cases:
            found[fold_key(case.id, None)] = number
            if case.group is not None:
                found[fold_key("", case.group)] = number
    return found


def _check_shapes(story: Story, arrays: Arrays) -> None:
    """ValueError where the parts do not belong together."""
    classes, kinds = len(story.labels), len(story.kinds)
    groups, width = 1 if classes == 2 else classes, inputs_count(classes, story.ndim)
    fitted = (kinds, 1) if len(arrays["together"]) else (0, 0)
    wanted = {
        "scale": (1,), "bias": (classes,), "surprises": (2, len(SURPRISES)),
        "signed": (2, groups, len(signed_names(story.ndim))), "doubts": (2, 2), "seen": (2, 2),
        "by_kind": (fitted[0], 1 + width), "by_kind_rates": (fitted[0],),
        "together": (fitted[1], 1 + width), "together_rates": (fitted[1],),
        "voxels": (1 + COLUMNS,), "volumes": (classes - 1,), "habit": (2, classes - 1),
        "common": (classes - 1,),
    }  # fmt: skip
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, not {shape}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds values that are no numbers")
    spreads = [arrays["volumes"], *(arrays[name][1] for name in ("surprises", "signed", "doubts", "seen"))]
    rates = [arrays[name] for name in ("by_kind_rates", "together_rates")]
    if (
        min(float(one.min(initial=1.0)) for one in (*spreads, *rates)) <= 0
        or max(one.sum() for one in rates) > 1
    ):
        raise ValueError("spreads and volumes must be above 0, rates between 0 and 1")
    if story.source == "folds" and not story.folds:
        raise ValueError("names no folds")
