"""The same flaws as MONAI dictionary transforms, for those who train with MONAI's own loop.

MONAI's arrays are (1, x, y, z), ours (z, y, x); axes and voxel size are turned here, so that "slices" are slices.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform, RandomizableTransform

from maskmend.errors import UsageError
from maskmend.noise.base import Annotation, LabelNoise
from maskmend.noise.corrupt import apply, corrupt_annotation, effect
from maskmend.noise.presets import make_noise


class _LabelTransform(MapTransform):  # type: ignore[misc]
    """What both transforms share: finding voxel size and image, and storing results."""

    def __init__(
        self,
        keys: KeysCollection,
        image_key: Hashable | None,
        spacing_mm: Sequence[float] | None,
        layered: bool,
        names: Mapping[str, int] | None,
        allow_missing_keys: bool,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key, self.spacing_mm = image_key, spacing_mm
        self.layered, self.names = layered, dict(names or {})

    def _annotation(self, data: Mapping[Hashable, Any], key: Hashable) -> Annotation:
        given = data[key]
        values = np.asarray(torch.as_tensor(given).detach().cpu())
        if values.ndim not in (3, 4) or len(values) != 1:
            fact = f"has the shape {values.shape}, not (1, H, W) or (1, x, y, z)"
            raise UsageError(fact, key, "flaw labels before they become one-hot, after EnsureChannelFirstd")
        label = np.ascontiguousarray(values[0].T)
        if not np.issubdtype(label.dtype, np.integer):
            whole = np.round(label)
            if not np.array_equal(whole, label):
                raise UsageError("holds fractions, so it is no label", key)
            label = whole.astype(np.int32)
        image = None
        if self.image_key is not None:
            picture = np.asarray(torch.as_tensor(data[self.image_key]).detach().cpu(), np.float32)
            image = np.ascontiguousarray(picture.transpose(0, *range(picture.ndim - 1, 0, -1)))
        return Annotation(label, self._spacing(given, label.ndim), image, self.layered, self.names)

    def _spacing(self, given: Any, ndim: int) -> tuple[float, ...]:
        """In our order of the axes."""
        if self.spacing_mm is not None:
            return tuple(float(size) for size in self.spacing_mm)[::-1]
        if isinstance(given, MetaTensor):
            return tuple(float(size) for size in affine_to_spacing(given.affine, ndim))[::-1]
        return (1.0,) * ndim

    def _store(
        self, data: dict[Hashable, Any], key: Hashable, truth: Annotation, label: np.ndarray, record: Any
    ) -> None:
        given = data[key]
        data[key] = _like(given, label.T[None])
        data[f"{key}_noise_map"] = _like(given, (label != truth.label).T[None].astype(np.uint8), torch.uint8)
        data[f"{key}_noise"] = record


class RandLabelNoised(RandomizableTransform, _LabelTransform):  # type: ignore[misc]
    """Flaw labels at random.

    Put it where labels are read, before a caching dataset, if each case shall keep one flaw; after it, each
    epoch draws anew, which is augmentation rather than label noise.

    Args:
        keys: of labels (1, *S) with class values.
        noise: a preset's name, a description or a noise.
        prob: share of the cases.
        image_key: of the image, for flaws that follow it.
        spacing_mm: voxel size in MONAI's order of axes; None: from the label's affine, else 1 mm.
        layered: see `maskmend.noise.corrupt.apply`.
        names: class name to value, for flaws that name classes.
        keep: see `maskmend.noise.corrupt.corrupt_annotation`.
        allow_missing_keys: as in MONAI.

    Adds `KEY_noise_map` (1, *S), 1 where the label is wrong, and `KEY_noise`, the record (empty without a flaw).

    Example:
        >>> flawed = RandLabelNoised("label", "dilate", prob=1.0)
        >>> flawed.set_random_state(0)  # doctest: +ELLIPSIS
        <...RandLabelNoised object at ...>
        >>> label = torch.zeros(1, 32, 32, dtype=torch.uint8); label[:, 12:20, 12:20] = 1
        >>> out = flawed({"label": label})
        >>> bool(out["label"].sum() > label.sum()), out["label_noise"]["transform"]
        (True, 'dilate')
    """

    def __init__(
        self,
        keys: KeysCollection,
        noise: str | Mapping[str, Any] | LabelNoise = "mixed",
        prob: float = 1.0,
        *,
        image_key: Hashable | None = None,
        spacing_mm: Sequence[float] | None = None,
        layered: bool = False,
        names: Mapping[str, int] | None = None,
        keep: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        _LabelTransform.__init__(self, keys, image_key, spacing_mm, layered, names, allow_missing_keys)
        self.noise, self.keep = make_noise(noise), keep

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Flaw every key, each with its own draw."""
        result = dict(data)
        self.randomize(None)
        for key in self.key_iterator(result):
            rng = np.random.default_rng(self.R.randint(2**31))
            truth = self._annotation(result, key)
            label: np.ndarray = truth.label
            record: dict[str, Any] = {}
            if self._do_transform:
                label, record = corrupt_annotation(truth, self.noise, rng, keep=self.keep)
            self._store(result, key, truth, label, record)
        return result


class LabelNoised(_LabelTransform):
    """Replay one recorded flaw, e.g. of `noise.json` or of `KEY_noise`.

    Args:
        keys: of labels (1, *S) with class values.
        choice: the record.
        image_key, spacing_mm, layered, allow_missing_keys: see `RandLabelNoised`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        choice: Mapping[str, Any],
        *,
        image_key: Hashable | None = None,
        spacing_mm: Sequence[float] | None = None,
        layered: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, image_key, spacing_mm, layered, None, allow_missing_keys)
        self.choice = dict(choice)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Flaw every key in the same way."""
        result = dict(data)
        for key in self.key_iterator(result):
            truth = self._annotation(result, key)
            strength = self.choice.get("strength", 1.0)
            label = apply(
                truth.label, truth.spacing_mm, self.choice, strength=strength, layered=self.layered, image=truth.image
            )  # fmt: skip
            record = {**self.choice, **effect(truth.label, label)}
            self._store(result, key, truth, label, record)
        return result


def _like(given: Any, values: np.ndarray, dtype: torch.dtype | None = None) -> Any:
    """Values as the kind of array that was given, with its affine."""
    values = np.ascontiguousarray(values)
    if not isinstance(given, torch.Tensor):
        return values if dtype is not None else values.astype(np.asarray(given).dtype)
    tensor = torch.as_tensor(values).to(device=given.device, dtype=dtype or given.dtype)
    return MetaTensor(tensor, meta=given.meta) if isinstance(given, MetaTensor) else tensor
