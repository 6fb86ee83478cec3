"""What reads an input: every way in which `check`, `predict`, `train`, `audit` and `corrupt` meet a file."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_seeds import IMAGES, TEXTS, noise

from maskmend.errors import UserError

RUN_FILES = ("config.yaml", "run.json", "plan.json", "fingerprint.json", "model.safetensors")


class Unexplained(Exception):
    """A refusal that does not say which file it is about, or why."""


class Target:
    """One folder in which inputs of one kind are put, one after the other, and read.

    Args:
        kind: an image suffix, or the name of a text file.
        folder: an empty folder.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.seeds, self._read = _KINDS[kind]
        self.context: dict[str, Any] = {"turn": 0}

    def try_one(self, data: bytes) -> str:
        """ "read" or "refused"; whatever else happens is raised.

        Raises:
            Unexplained: a refusal without the file's name or a reason. MemoryError: too much was allocated.
        """
        refusals = self._read(self, data)
        self.context["turn"] += 1
        return "refused" if refusals else "read"


def _told(action: Callable[[], Any], names: tuple[str, ...]) -> list[UserError]:
    """The refusal of `action`, which must name one of `names` and say something."""
    try:
        action()
    except UserError as error:
        if isinstance(error.__cause__, MemoryError) or (
            "memory" in error.what and "GiB in" not in error.what
        ):
            raise MemoryError(str(error)) from error
        text = str(error)
        if len(error.what.strip()) < 8 or not any(name in text for name in names):
            raise Unexplained(f"names none of {names}: {text}") from error
        return [error]
    return []


def _checked(root: Path, names: tuple[str, ...]) -> list[UserError]:
    """`maskmend check`: findings name the case or the file."""
    from maskmend.data.check import check

    def run() -> None:
        result = check(root, threads=1)
        for finding in result.errors:
            if "does not fit into memory" in finding.text:
                raise MemoryError(finding.line())
        json.dumps(result.to_json())
        result.raise_errors()

    return _told(run, names)


def _predicted(
    context: dict[str, Any], folder: Path, source: Path, names: tuple[str, ...]
) -> list[UserError]:
    """`maskmend predict` with a network that thinks in thresholds."""
    from maskmend.predict.run import predict

    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    return _told(lambda: predict(_model(context, folder), source, out, device="cpu", batch=2), names)


def _model(context: dict[str, Any], folder: Path) -> Any:
    if "model" not in context:
        context["model"] = _Threshold(folder / "model")
    return context["model"]


class _Threshold:
    """The least that `predict` needs of a run."""

    def __init__(self, folder: Path) -> None:
        from maskmend.config import Config
        from maskmend.data.plan import Plan

        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"stands for a model")
        self.folder, self.config = folder, Config()
        self.plan = Plan.model_validate_json(json.dumps(PLAN))

    def method(self) -> Any:
        import torch

        class Method(torch.nn.Module):
            def predict(self, image: Any) -> Any:
                inside = (image[:, :1] > 0).float()
                return torch.cat([1 - inside, inside], 1)

        return Method()


PLAN = {
    "ndim": 2, "spacing_mm": [1.0, 1.0], "channels": [{"name": "CT", "scheme": "zscore"}],
    "classes": {"background": 0, "organ": 1}, "patch": [16, 16], "batch": 2, "depth": 2, "flips": [False, False],
}  # fmt: skip


def _try_image(self: Target, data: bytes) -> list[UserError]:
    """As image and as label in turn; by the readers, by `check`, and in every third turn by `predict`."""
    from maskmend.data.images import read_header, read_image, read_label

    root, context = self.folder / "fuzzed", self.context
    partner = self.seeds()[0] if self.kind != ".dcm" else None
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True, exist_ok=True)
    as_image = context["turn"] % 2 == 0 or partner is None
    file = root / ("images" if as_image else "labels") / f"case{self.kind}"
    other = root / ("labels" if as_image else "images") / f"case{self.kind if partner else '.nii'}"
    file.write_bytes(data)
    if "other" not in context or other != context["other"]:
        other.write_bytes(partner or IMAGES[".nii"]()[3])
        context["other"] = other
    names = (file.name,)
    _told(lambda: read_header(file), names)
    refusals = _told(lambda: read_image(file), names)
    if self.kind != ".dcm":
        _told(lambda: read_label(file), names)
    _checked(root, (*names, str(root)))
    if context["turn"] % 3 == 0:
        _predicted(context, self.folder, file, (*names, "case: "))
    return refusals


def _data_set(root: Path) -> None:
    """Two flat cases in the nnU-Net layout, with a second rater."""
    from PIL import Image

    for name in ("imagesTr", "labelsTr", "labelsTr_ann"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for case in "ab":
        mask = np.zeros((12, 10), np.uint8)
        mask[3:8, 2:7] = 1
        Image.fromarray((mask * 90 + rng.integers(0, 60, mask.shape)).astype(np.uint8)).save(
            root / f"imagesTr/{case}_0000.png"
        )
        for labels in ("labelsTr", "labelsTr_ann"):
            Image.fromarray(mask).save(root / labels / f"{case}.png")


def _try_json(self: Target, data: bytes) -> list[UserError]:
    from maskmend.data.dataset import find_cases

    root = self.folder / "fuzzed"
    if not root.exists():
        _data_set(root)
    (root / self.kind).write_bytes(data)
    names = (str(root), self.kind, "imagesTr", "labelsTr", "case ")
    refusals = _told(lambda: find_cases(root, need_labels=False), names) + _checked(root, names)
    if self.context["turn"] % 3 == 0:
        refusals += _predicted(self.context, self.folder, root, names)
    return refusals


def _try_csv(self: Target, data: bytes) -> list[UserError]:
    from maskmend.data.dataset import find_cases

    root = self.folder / "fuzzed"
    if not root.exists():
        _data_set(root)
        for name in ("imagesTr", "labelsTr"):  # so that the folder is not taken for another layout
            shutil.copytree(root / name, self.folder / "table" / name)
    table = self.folder / "table" / self.kind
    table.write_bytes(data)
    names = (
        str(table),
        self.kind,
        "imagesTr",
        "labelsTr",
        *(f"{case}: " for case in ("a", "b", "a_0000", "b_0000")),
        *{cell for cell in re.split(r'[,;\t\r\n"]', data.decode(errors="ignore")) if len(cell) > 4},
    )
    refusals = _told(lambda: find_cases(table.parent, layout="csv"), (*names, str(table.parent)))
    refusals += _checked(table, names)
    if self.context["turn"] % 3 == 0:
        refusals += _predicted(self.context, self.folder, table, names)
    return refusals


def _try_config(self: Target, data: bytes) -> list[UserError]:
    from maskmend.config import dump, load

    file = self.folder / self.kind
    file.write_bytes(data)
    return _told(lambda: dump(load(file, ["train.steps=5"])), (file.name,))


def _try_noise(self: Target, data: bytes) -> list[UserError]:
    from maskmend.noise.description import build, read_noise

    file = self.folder / self.kind
    file.write_bytes(data)
    read: list[Any] = []
    refusals = _told(lambda: read.append(read_noise(str(file))), (file.name,))
    return refusals or _told(
        lambda: build(read[0]), ("",)
    )  # names the setting; there is one such file at a time


def _try_run(self: Target, data: bytes) -> list[UserError]:
    """One file of a run folder; the others are sound."""
    from maskmend.train.run_folder import Run

    folder = self.folder / "fuzzed"
    if not folder.exists():
        made = make_run(self.folder / "sound")
        folder.mkdir()
        for file in RUN_FILES:
            shutil.copy(made / file, folder / file)
    (folder / self.kind).write_bytes(data)

    def run() -> None:
        opened = Run.open(folder)
        if self.kind == "fingerprint.json":
            _ = opened.fingerprint
        if self.kind != "run.json":
            opened.method()

    return _told(run, (str(folder), self.kind))


def _try_learnt(self: Target, data: bytes) -> list[UserError]:
    """What an audit has learnt, and a mask judged by it."""
    from maskmend.audit.learnt import Learnt
    from maskmend.audit.look import look_at

    file = self.folder / self.kind
    file.write_bytes(data)
    read: list[Learnt] = []
    refusals = _told(lambda: read.append(Learnt.read(file)), (file.name,))
    if read and len(read[0].labels) == read[0].ndim == 2:
        mask = np.zeros((12, 10), np.uint8)
        mask[3:8, 2:7] = 1
        likely = 0.1 + 0.8 * mask
        read[0].auditor.judge(look_at("a", np.stack([1 - likely, likely]), mask, (1.0, 1.0))).dice(mask)
        read[0].check.interval(0.8)
        read[0].witness(read[0].outlines)
    return refusals


def _learnt() -> list[bytes]:
    """Of an audit in which nothing was wrong."""
    import tempfile

    from maskmend.audit.estimate import fit
    from maskmend.audit.learnt import Learnt
    from maskmend.audit.look import look_at
    from maskmend.audit.outlines import Outlines
    from maskmend.audit.selfcheck import SelfCheck

    rows, columns = np.mgrid[:24, :24]
    cases = {}
    for number in range(12):
        far = np.hypot(rows - 12 - number % 3, columns - 12) - 6 - number % 4
        likely = 1 / (1 + np.exp(2 * far))
        cases[str(number)] = look_at(str(number), np.stack([1 - likely, likely]), far < 0, (1.0, 1.0))
    auditor = fit(lambda ids: (cases[one] for one in ids), list(cases))
    check = SelfCheck.of(auditor, lambda ids: (cases[one] for one in ids), list(cases))
    values = np.random.default_rng(0).normal(size=(12, 69, 4)).astype(np.float32)
    outlines = Outlines.of(list(cases), {"looks": values[:, :64], "scenes": values[:, 64:]})
    volumes = {case: {"organ": 30.0} for case in cases}
    learnt = Learnt(
        "folds", None, "", None, "auto", False, False, {"background": 0, "organ": 1}, 2, {"case 1": 0}, auditor, check,
        outlines, 0.5, (0.5, 0.1), volumes,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        learnt.write(Path(folder) / "file")
        return [(Path(folder) / "file").read_bytes()]


def make_run(folder: Path) -> Path:
    """A run folder as `maskmend train` leaves it, of a network that was never trained."""
    import torch
    from safetensors.torch import save_file

    from maskmend.config import dump, load
    from maskmend.data.plan import Plan
    from maskmend.train.run_folder import build_method

    folder.mkdir(parents=True)
    config = load(None, ["method.name=supervised", "train.steps=1", "device=cpu"])
    plan = Plan.model_validate_json(json.dumps(PLAN))
    torch.manual_seed(0)
    method = build_method(config, plan)
    tensors = {name: tensor.contiguous() for name, tensor in method.state_dict().items()}
    save_file(
        tensors, folder / "model.safetensors", metadata={"maskmend": json.dumps({"format": "maskmend 1"})}
    )
    (folder / "config.yaml").write_text(dump(config))
    (folder / "plan.json").write_text(plan.model_dump_json(indent=1))
    facts = {"format": "maskmend 1", "maskmend": "0", "status": "finished", "dataset": None}
    (folder / "run.json").write_text(json.dumps(facts))
    values = {"minimum": 0, "p00_5": 0, "median": 50, "p99_5": 99, "maximum": 100, "mean": 50, "std": 20}
    channel = {"name": "CT", "all": values, "foreground": values}
    case = {
        "id": "a", "shape": [12, 10], "spacing_mm": [1, 1], "nonzero": [12, 10], "voxels": {"0": 90, "1": 30},
        "left_right": None,
    }  # fmt: skip
    (folder / "fingerprint.json").write_text(json.dumps({"ndim": 2, "cases": [case], "channels": [channel]}))
    return folder


_sound_run: dict[str, bytes] = {}


def _run_file(name: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        if not _sound_run:
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                made = make_run(Path(folder) / "run")
                _sound_run.update({one: (made / one).read_bytes() for one in RUN_FILES})
        return [_sound_run[name]]

    return seeds


def _kept(make: Callable[[], list[bytes]]) -> Callable[[], list[bytes]]:
    """Made once."""
    made: list[list[bytes]] = []

    def seeds() -> list[bytes]:
        if not made:
            made.append(make())
        return made[0]

    return seeds


_KINDS: dict[str, tuple[Callable[[], list[bytes]], Callable[[Target, bytes], list[UserError]]]] = {
    **{suffix: (_kept(make), _try_image) for suffix, make in IMAGES.items()},
    "dataset.json": (lambda: TEXTS["dataset.json"], _try_json),
    "maskmend.json": (lambda: TEXTS["maskmend.json"], _try_json),
    "manifest.csv": (lambda: TEXTS["manifest.csv"], _try_csv),
    "config.yaml": (lambda: TEXTS["config.yaml"], _try_config),
    "noise.yaml": (_kept(noise), _try_noise),
    **{name: (_run_file(name), _try_run) for name in RUN_FILES if name != "config.yaml"},
    "learnt.safetensors": (_kept(_learnt), _try_learnt),
}
KINDS = tuple(_KINDS)


def input_of(kind: str, seed: int) -> bytes:
    """The flawed input behind a number; the first ones of each kind are the sound inputs themselves."""
    from fuzz_mutations import pick, spoil

    sound = _KINDS[kind][0]()
    if seed < len(sound):
        return sound[seed]
    rng = np.random.default_rng([seed, *kind.encode()])
    return spoil(rng, kind, pick(rng, sound))


def silence() -> None:
    """Libraries complain on stderr, from C too; nobody reads it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
