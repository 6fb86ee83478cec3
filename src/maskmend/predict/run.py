"""Predict a folder of images with a trained run; results lie on each input's own grid."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from maskmend.data.case import Case, Geometry
from maskmend.data.digests import fed
from maskmend.data.fingerprint import Fingerprint
from maskmend.data.images import read_image
from maskmend.data.plan import Plan
from maskmend.data.preprocess import Inverse, prepare
from maskmend.errors import DataError, Interrupted, ResourceError, UsageError
from maskmend.predict.inputs import check_fit, find_inputs
from maskmend.predict.intensity import oddities
from maskmend.predict.output import Output
from maskmend.predict.restore import restore
from maskmend.predict.sliding import count_windows, predict_many
from maskmend.progress import Bar, bar, message

if TYPE_CHECKING:
    from maskmend.config import Config, PredictConfig
    from maskmend.methods.base import Method


class Model(Protocol):
    """What prediction needs of a run; `maskmend.train.run_folder.Run` is one."""

    @property
    def folder(self) -> Path:
        """The run folder."""

    @property
    def plan(self) -> Plan:
        """How images become tensors."""

    @property
    def config(self) -> Config:
        """The settings of the run."""

    def method(self) -> Method:
        """The trained method in evaluation mode, on the CPU."""


def predict(
    run: Model | Path | str,
    input: Path | str,
    out: Path | str,
    *,
    config: Config | None = None,
    overlap: float | None = None,
    mirror: bool | None = None,
    save: Sequence[str] | None = None,
    batch: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    trust_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Segment images with a trained run.

    An interrupted prediction goes on where it stopped when it is called again. A case that cannot be read
    does not stop the others; the error at the end names it.

    Args:
        run: a run, or its folder.
        input: an image, a DICOM folder, a folder of images or a data set (its test cases if it has any).
        out: a folder; for a single image also a file. Labels are named after the case and have the image's
            own format where it can hold labels (JPEG gives PNG, DICOM gives NIfTI); probabilities and
            uncertainty go into subfolders.
        config: settings; those of the run by default. The further arguments win over it.
        overlap: share by which neighbouring windows overlap, in [0, 0.9].
        mirror: average over images mirrored along the axes that were mirrored in training.
        save: any of "labels", "probs", "uncertainty".
        batch: windows per forward pass.
        device: "auto", "cpu", "cuda" or "cuda:N".
        overwrite: replace what `out` holds of these cases, whoever made it.
        trust_code: execute the method or network of its own that a run folder names; without it such a run is refused.
        progress: called with (done, total) after each case.

    Returns:
        The label files in case order.

    Raises:
        UsageError: nothing to predict, images that do not fit the run, or an `out` that is not ours.
        DataError: some cases could not be read; the others are written.
        ResourceError: not enough memory. Interrupted: Ctrl-C; the same call goes on.
    """
    opened = _opened(run, trust_code)
    settings = _settings(config or opened.config, overlap, mirror, save, batch)
    cases = find_inputs(Path(input), opened.plan)
    max_voxels = (config or opened.config).data.max_voxels
    check_fit(cases, opened.plan, max_voxels=max_voxels)
    output = Output.open(Path(out), cases, settings.save, _maker(opened, settings), overwrite=overwrite)
    todo = [case for case in cases if case.id not in output.done]
    if len(todo) < len(cases):
        message(f"{len(cases) - len(todo)} of {len(cases)} cases are already there")
    if todo:
        chosen = device or (config or opened.config).device
        _Prediction(opened, settings, output, todo, max_voxels, chosen, progress).go()
    return output.paths()


@dataclass(frozen=True)
class _Waiting:
    """A case whose windows are on their way through the network."""

    case: Case
    geometry: Geometry
    inverse: Inverse


class _Prediction:
    """One pass over cases: read, prepare, predict, restore, write. Holds one large volume at a time."""

    def __init__(
        self, run: Model, settings: PredictConfig, output: Output, cases: Sequence[Case], max_voxels: int,
        device: str, progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        from maskmend.train.engine import choose_device

        self.plan, self.settings, self.output, self.cases = run.plan, settings, output, cases
        self.fingerprint: Fingerprint | None = getattr(run, "fingerprint", None)
        self.max_voxels, self.progress = max_voxels, progress
        self.device = choose_device(device)
        self.method = run.method().to(self.device).eval()
        self.values = np.array(self.plan.values, np.int32)
        self.waiting: deque[_Waiting] = deque()
        self.failed: list[DataError] = []
        self.done = self.windows = self.windows_done = 0

    def go(self) -> None:
        with bar("predicting", len(self.cases)) as shown:
            try:
                self._predict(shown)
            except KeyboardInterrupt:
                fact = f"stopped after {self.done} of {len(self.cases)} cases, which are written"
                raise Interrupted(fact, None, "the same command goes on from there") from None
            except torch.cuda.OutOfMemoryError as fault:
                remedy = "use predict.batch=1 or device=cpu"
                raise ResourceError("the GPU's memory does not suffice", self.device, remedy) from fault
        if len(self.failed) == len(self.cases) == 1:
            raise self.failed[0]
        if self.failed:
            listed = "\n".join(str(error) for error in self.failed[:10])
            fact = f"{len(self.failed)} of {len(self.cases)} cases were not predicted; the others are written"
            raise DataError(f"{fact}\n{listed}", None, "mend these files; the same command then adds them")

    def _predict(self, shown: Bar) -> None:
        def tick(windows: int) -> None:
            self.windows_done += windows
            shown.update(0, windows=f"{self.windows_done}/{self.windows}")

        stream = predict_many(
            self.method.predict,
            self._images(shown),
            patch=self.plan.patch,
            classes=self.plan.num_classes,
            overlap=self.settings.overlap,
            batch=self.settings.batch,
            mirror=_mirror_axes(self.plan) if self.settings.mirror else (),
            device=self.device,
            tick=tick,
            steady=True,
        )
        for probs in stream:
            self._write(self.waiting.popleft(), probs.numpy())
            del probs  # before the next image is read
            self._advance(shown)

    def _images(self, shown: Bar) -> Iterator[np.ndarray]:
        for case in self.cases:
            try:
                image = self._prepared(case)
            except DataError as error:
                self.failed.append(error)
                message(str(error))
                self._advance(shown)
                continue
            self.windows += count_windows(image.shape[1:], self.plan.patch, self.settings.overlap)
            held = [image]
            del image
            yield held.pop()  # no name is left here on what the consumer has finished with

    def _prepared(self, case: Case) -> np.ndarray:
        channels, spacing_mm = self.plan.in_channels, self.plan.input_spacing_mm
        try:
            image, geometry = read_image(
                case.images, max_voxels=self.max_voxels, channels=channels, spacing_mm=spacing_mm
            )
            for fact in oddities(image, self.plan, self.fingerprint, where=case.id):
                message(f"warning: {case.id}: {fact}")
            prepared = prepare(image, None, geometry, self.plan, where=case.id)
        except MemoryError as error:
            fact = "the image does not fit into memory"
            raise ResourceError(fact, case.id, "predict it on a larger machine, or cut it") from error
        self.waiting.append(_Waiting(case, geometry, prepared.inverse))
        return prepared.image

    def _write(self, item: _Waiting, probs: np.ndarray) -> None:
        save = self.settings.save
        result = restore(
            probs, item.inverse, keep_probs="probs" in save, keep_uncertainty="uncertainty" in save
        )
        self.output.write(item.case, result, self.values, item.geometry)

    def _advance(self, shown: Bar) -> None:
        self.done += 1
        shown.update(1)
        if self.progress:
            self.progress(self.done, len(self.cases))


def _opened(run: Model | Path | str, trust_code: bool) -> Model:
    if not isinstance(run, str | Path):
        return run
    from maskmend.train.run_folder import Run

    opened: Any = Run.open(Path(run), trust_code=trust_code)
    model: Model = opened
    return model


def _settings(
    config: Config, overlap: float | None, mirror: bool | None, save: Sequence[str] | None, batch: int | None
) -> PredictConfig:
    """The predict section with the arguments that were given; wrong ones are told as for `key=value`."""
    from pydantic import ValidationError

    given = {
        "overlap": overlap,
        "mirror": mirror,
        "save": None if save is None else list(save),
        "batch": batch,
    }
    changed = {key: value for key, value in given.items() if value is not None}
    try:
        return type(config.predict).model_validate({**config.predict.model_dump(), **changed})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("predict", *first["loc"]))
        raise UsageError(f"{first['input']!r}: {first['msg']}", key) from error


def _maker(run: Model, settings: PredictConfig) -> dict[str, Any]:
    return {
        "model": _sha256(run.folder / "model.safetensors"),
        "overlap": settings.overlap,
        "mirror": settings.mirror,
    }


def _sha256(path: Path) -> str:
    if not path.exists():
        raise UsageError("the run has no model yet", path, "train it to the end, or resume it")
    return fed(hashlib.sha256(), path).hexdigest()


def _mirror_axes(plan: Plan) -> tuple[int, ...]:
    axes = tuple(axis for axis, flip in enumerate(plan.flips) if flip)
    if not axes:
        message("warning: the run was trained without mirroring, so predict.mirror changes nothing")
    return axes
