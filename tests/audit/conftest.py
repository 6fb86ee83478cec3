"""Worlds whose truth is known: blobs, a model whose outline wavers about them, and masks of which some are flawed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from maskmend.audit.look import Look, look_at
from maskmend.data.case import Dataset
from maskmend.data.dataset import find_cases


@dataclass
class World:
    """Cases by id, and what is true of them."""

    truth: dict[str, np.ndarray] = field(default_factory=dict)
    given: dict[str, np.ndarray] = field(default_factory=dict)
    probs: dict[str, np.ndarray] = field(default_factory=dict)
    flawed: dict[str, str] = field(default_factory=dict)
    valid: dict[str, np.ndarray] = field(default_factory=dict)
    spacing_mm: tuple[float, ...] = (1.0, 1.0)

    @property
    def ids(self) -> list[str]:
        return sorted(self.given)

    def look(self, case: str) -> Look:
        return look_at(case, self.probs[case], self.given[case], self.spacing_mm, self.valid.get(case))

    def looks(self, ids: Sequence[str]) -> Iterator[Look]:
        return (self.look(case) for case in ids)


def decathlon(root: Path, *, raters: Sequence[str] = ()) -> Dataset:
    """One case of (z, y, x) = 8 x 10 x 12 voxels whose two modalities lie in one file of four axes."""
    rng, mask = np.random.default_rng(0), np.zeros((12, 10, 8), np.uint8)
    mask[3:8, 3:7, 2:6] = 1
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    folders = ["imagesTr", "labelsTr"]
    if raters:  # of two folders: the Decathlon knows no raters
        folders = ["images", "labels", *(f"labels_{name}" for name in raters)]
        (root / "maskmend.json").write_text('{"channels": ["T1", "T2"]}')
    else:
        told = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "organ"}, "numTraining": 1,
                "training": [{"image": "./imagesTr/p.nii.gz", "label": "./labelsTr/p.nii.gz"}], "test": []}  # fmt: skip
        (root / "dataset.json").write_text(json.dumps(told))
    for i, folder in enumerate(folders):
        (root / folder).mkdir()
        array = rng.normal(100, 20, (*mask.shape, 2)).astype(np.float32) if i == 0 else np.roll(mask, i, 0)
        nibabel.save(nibabel.Nifti1Image(array, affine), root / folder / "p.nii.gz")
    return find_cases(root)


def without_affine(path: Path) -> None:
    """Empty the header of a NIfTI file of its geometry, as some exports do."""
    image = nibabel.load(path)
    for name in ("srow_x", "srow_y", "srow_z"):
        image.header[name] = 0
    image.header["sform_code"], image.header["vox_offset"] = 1, 352
    path.write_bytes(
        gzip.compress(image.header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F"))
    )


def noise_field(rng: np.random.Generator, shape: Sequence[int], sigma: float) -> np.ndarray:
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return smooth / smooth.std()


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * ((one == other) & (one > 0)).sum() / max((one > 0).sum() + (other > 0).sum(), 1))


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Above 0 inside; the outline lies half way between voxels."""
    return ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask) - (mask - 0.5)


def blob(rng: np.random.Generator, shape: Sequence[int], radius: float) -> np.ndarray:
    """A wavy ball near the middle, (*S) bool."""
    centre = [n / 2 + rng.uniform(-3, 3) for n in shape]
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    far = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
    return far < radius + 1.2 * noise_field(rng, shape, 5)


def wavering(
    rng: np.random.Generator, masks: Sequence[np.ndarray], waver: float, bias: float = 0.0
) -> np.ndarray:
    """Probabilities (K, *S) of a model whose outlines lie `bias` outside the true ones and waver about that."""
    logits = [np.zeros(masks[0].shape)]
    for mask in masks:
        logits.append(1.5 * (signed_distance(mask) + bias + waver * noise_field(rng, mask.shape, 4)))
    soft = np.exp(np.stack(logits) - np.max(logits, axis=0))
    return (soft / soft.sum(axis=0)).astype(np.float32)


def with_error(label: np.ndarray, kind: str, step: int) -> np.ndarray:
    """Errors by plain means, other than the package's own."""
    ball = ndimage.generate_binary_structure(label.ndim, 1)
    if kind == "over-drawn":
        wide = ndimage.grey_dilation(label, footprint=ndimage.iterate_structure(ball, step))
        return np.where(label > 0, label, wide)
    if kind == "under-drawn":
        return np.where(ndimage.binary_erosion(label > 0, ball, step), label, 0)
    if kind == "shifted":
        return np.roll(label, (2 * step, step)[: label.ndim], axis=(0, 1)[: label.ndim])
    raise ValueError(kind)


@pytest.fixture(scope="session")
def make_world() -> Callable[..., World]:
    """A maker of worlds, the same for the same arguments."""

    def make(
        cases: int = 60, *, ndim: int = 2, classes: int = 2, rate: float = 0.3, seed: int = 0, bias: float = 0.0,
        kinds: Sequence[str] = ("over-drawn", "under-drawn", "shifted"), size: int | None = None, waver: float = 0.6,
    ) -> World:  # fmt: skip
        world = World(spacing_mm=(1.0,) * ndim)
        shape = (size or (64 if ndim == 2 else 28),) * ndim
        for number in range(cases):
            rng = np.random.default_rng([seed, number])
            name = f"case{number:04d}"
            masks = [blob(rng, shape, shape[0] / 4)]
            if classes > 2:  # the second class is the upper half of the blob
                upper = masks[0] & (np.arange(shape[0]) < shape[0] / 2).reshape(-1, *[1] * (ndim - 1))
                masks = [masks[0] & ~upper, upper]
            truth = sum(k * mask for k, mask in enumerate(masks, 1)).astype(np.uint8)
            world.truth[name], world.given[name] = truth, truth
            world.probs[name] = wavering(rng, masks, waver, bias)
            if number < rate * cases:
                kind = kinds[number % len(kinds)]
                world.flawed[name] = kind
                world.given[name] = with_error(truth, kind, 2 if ndim == 2 else 1)
        return world

    return make
