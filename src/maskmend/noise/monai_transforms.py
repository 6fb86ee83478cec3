"""The same flaws as MONAI dictionary transforms, for those who train with MONAI's own loop.

MONAI's arrays are (1, x, y, z), ours (z, y, x); axes and voxel size are turned here, so that "slices" are slices.
Each transform adds `KEY_noise_map` (1, *S), 1 where the label is wrong, and `KEY_noise`, the record as JSON text:
records differ in their keys from case to case, which a batch of dictionaries cannot.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform, RandomizableTransform

from maskmend.data.formats import stem_of
from maskmend.errors import UsageError
from maskmend.noise.base import Annotation, LabelNoise
from maskmend.noise.cases import case_rng
from maskmend.noise.corrupt import apply_to, corrupt_annotation, effect
from maskmend.noise.presets import make_noise


class _LabelTransform(MapTransform):  # type: ignore[misc]
    """What the transforms share: finding voxel size, image and case, and storing results."""

    def __init__(
        self,
        keys: KeysCollection,
        *,
        image_key: Hashable | None = None,
        spacing_mm: Sequence[float] | None = None,
        layered: bool = False,
        classes: Iterable[int] | None = None,
        ignore: int | None = None,
        names: Mapping[str, int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key, self.spacing_mm = image_key, spacing_mm
        self.layered, self.names = layered, dict(names or {})
        self.classes, self.ignore = None if classes is None else [int(v) for v in classes], ignore

    def _annotation(self, data: Mapping[Hashable, Any], key: Hashable, case: str = "") -> Annotation:
        given = data[key]
        values = np.asarray(torch.as_tensor(given).detach().cpu())
        if values.ndim not in (3, 4) or len(values) != 1:
            fact = f"has the shape {values.shape}, not (1, H, W) or (1, x, y, z)"
            raise UsageError(fact, key, "flaw labels before they become one-hot, after EnsureChannelFirstd")
        label = np.ascontiguousarray(values[0].T)
        if not np.issubdtype(label.dtype, np.integer):
            whole = np.round(label)
            if not np.array_equal(whole, label):
                raise UsageError(
                    "holds fractions, so it is no label", key, "resample labels with mode='nearest'"
                )
            label = whole.astype(np.int32)
        spacing = self._spacing(given, label.ndim)
        return Annotation(label, spacing, self._image(data), self.layered, self.names, case)

    def _image(self, data: Mapping[Hashable, Any]) -> np.ndarray | None:
        if self.image_key is None:
            return None
        picture = np.asarray(torch.as_tensor(data[self.image_key]).detach().cpu(), np.float32)
        return np.ascontiguousarray(picture.transpose(0, *range(picture.ndim - 1, 0, -1)))

    def _spacing(self, given: Any, ndim: int) -> tuple[float, ...]:
        """In our order of the axes."""
        if self.spacing_mm is not None:
            return tuple(float(size) for size in self.spacing_mm)[::-1]
        if isinstance(given, MetaTensor):
            return tuple(float(size) for size in affine_to_spacing(given.affine, ndim))[::-1]
        return (1.0,) * ndim

    def _flaw(
        self,
        data: dict[Hashable, Any],
        key: Hashable,
        noise: LabelNoise,
        rng: np.random.Generator | None,
        keep: float | None,
        case: str = "",
    ) -> None:
        """Flaw one label by this generator, or note that it has no flaw."""
        truth = self._annotation(data, key, case)
        if rng is None:
            self._store(data, key, truth, truth.label, {})
        else:
            how: dict[str, Any] = {"keep": keep, "classes": self.classes, "ignore": self.ignore}
            self._store(data, key, truth, *corrupt_annotation(truth, noise, rng, **how))

    def _store(
        self,
        data: dict[Hashable, Any],
        key: Hashable,
        truth: Annotation,
        label: np.ndarray,
        record: Mapping[str, Any],
    ) -> None:
        given = data[key]
        data[key] = _like(given, label.T[None])
        data[f"{key}_noise_map"] = _like(given, (label != truth.label).T[None].astype(np.uint8), torch.uint8)
        data[f"{key}_noise"] = json.dumps(record)


class RandLabelNoised(RandomizableTransform, _LabelTransform):  # type: ignore[misc]
    """Flaw labels anew each time they are asked for: augmentation of labels. See `CaseLabelNoised` for label noise.

    Args:
        keys: of labels (1, *S) with class values.
        noise: a preset's name, a description or a noise.
        prob: probability of a flaw.
        keep: see `maskmend.noise.corrupt.corrupt_annotation`.
        **how: image_key: of the image, for flaws that follow it. spacing_mm: voxel size in MONAI's order of axes;
            None: from the label's affine, else 1 mm. layered, classes, ignore: see `maskmend.noise.corrupt.apply`.
            names: class name to value, for flaws that name classes. allow_missing_keys: as in MONAI.

    Example:
        >>> flawed = RandLabelNoised("label", "dilate", prob=1.0)
        >>> flawed.set_random_state(0)  # doctest: +ELLIPSIS
        <...RandLabelNoised object at ...>
        >>> label = torch.zeros(1, 32, 32, dtype=torch.uint8); label[:, 12:20, 12:20] = 1
        >>> out = flawed({"label": label})
        >>> bool(out["label"].sum() > label.sum()), json.loads(out["label_noise"])["transform"]
        (True, 'dilate')
    """

    def __init__(
        self,
        keys: KeysCollection,
        noise: str | Mapping[str, Any] | LabelNoise = "mixed",
        prob: float = 1.0,
        *,
        keep: float | None = None,
        **how: Any,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        _LabelTransform.__init__(self, keys, **how)
        self.noise, self.keep = make_noise(noise), keep

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Flaw every key, each with its own draw."""
        result = dict(data)
        self.randomize(None)
        for key in self.key_iterator(result):
            rng = np.random.default_rng(self.R.randint(2**31))
            self._flaw(result, key, self.noise, rng if self._do_transform else None, self.keep)
        return result


class CaseLabelNoised(_LabelTransform):
    """Flaw labels once and for all: the flaw is a function of the seed and the case, as in `maskmend corrupt`.

    It is not random for MONAI, so caching data sets keep what it made.

    Args:
        keys: of labels (1, *S) with class values.
        noise: a preset's name, a description or a noise.
        cases: ids of the cases to flaw, e.g. of `maskmend.noise.presets.choose_cases`; None: all.
        seed: any integer >= 0.
        case_key: of the case's id; None: the stem of the label's file, as MONAI's `LoadImaged` notes it.
        keep, **how: see `RandLabelNoised`.

    Example:
        >>> flawed = CaseLabelNoised("label", "dilate", cases=["b"], case_key="id")
        >>> label = torch.zeros(1, 32, 32, dtype=torch.uint8); label[:, 12:20, 12:20] = 1
        >>> [bool(flawed({"label": label, "id": case})["label_noise_map"].any()) for case in "ab"]
        [False, True]
    """

    def __init__(
        self,
        keys: KeysCollection,
        noise: str | Mapping[str, Any] | LabelNoise = "mixed",
        cases: Collection[str] | None = None,
        seed: int = 0,
        *,
        case_key: Hashable | None = None,
        keep: float | None = None,
        **how: Any,
    ) -> None:
        super().__init__(keys, **how)
        self.noise, self.keep, self.seed, self.case_key = make_noise(noise), keep, seed, case_key
        self.cases = None if cases is None else frozenset(cases)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Flaw every key of a chosen case."""
        result = dict(data)
        for key in self.key_iterator(result):
            case = self._case(result, key)
            chosen = self.cases is None or case in self.cases
            rng = case_rng(case, self.seed) if chosen else None
            self._flaw(result, key, self.noise, rng, self.keep, case)
        return result

    def _case(self, data: Mapping[Hashable, Any], key: Hashable) -> str:
        if self.case_key is not None:
            return str(data[self.case_key])
        file = getattr(data[key], "meta", {}).get("filename_or_obj")
        if file is None:
            raise UsageError(
                "does not say which case it is of", key, "give case_key=, the key of the case's id"
            )
        return stem_of(str(file))


class LabelNoised(_LabelTransform):
    """Replay one recorded flaw, e.g. of `noise.json` or of `KEY_noise`.

    Args:
        keys: of labels (1, *S) with class values.
        choice: the record, or its JSON text.
        **how: see `RandLabelNoised`.
    """

    def __init__(self, keys: KeysCollection, choice: str | Mapping[str, Any], **how: Any) -> None:
        super().__init__(keys, **how)
        self.choice = dict(json.loads(choice) if isinstance(choice, str) else choice)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Flaw every key in the same way; an empty record changes nothing."""
        result = dict(data)
        for key in self.key_iterator(result):
            truth, label = self._annotation(result, key), None
            if self.choice:
                strength = self.choice.get("strength", 1.0)
                label = apply_to(truth, self.choice, strength, classes=self.classes, ignore=self.ignore)
            label = truth.label if label is None else label
            record = self.choice | (effect(truth.label, label, ignore=self.ignore) if self.choice else {})
            self._store(result, key, truth, label, record)
        return result


def _like(given: Any, values: np.ndarray, dtype: torch.dtype | None = None) -> Any:
    """Values as the kind of array that was given, with its place in space and what was done to it before."""
    values = np.ascontiguousarray(values)
    if not isinstance(given, torch.Tensor):
        return values if dtype is not None else values.astype(np.asarray(given).dtype)
    tensor = torch.as_tensor(values).to(device=given.device, dtype=dtype or given.dtype)
    if not isinstance(given, MetaTensor):
        return tensor
    return MetaTensor(tensor, meta=dict(given.meta), applied_operations=list(given.applied_operations))
