"""Which patch comes next: a pure function of (seed, epoch, index), so that no state has to be stored.

Any worker, process or resumed run computes the same sample from the same three numbers. One epoch is a
permutation of the cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from maskmend.data.cache import Cache
from maskmend.data.preprocess import IGNORED

if TYPE_CHECKING:
    from maskmend.methods.base import Batch

Remembered = Callable[[int], Any]
"""Case number to what a method remembers of it, (K, *P) float, or None."""

_MASK = 2**64 - 1
_STREAMS = {"order": 1, "patch": 2, "augment": 3, "trusted": 4}


@dataclass(frozen=True)
class Sample:
    """One patch.

    Args:
        image: (C, *S) float32, 0 outside the case.
        label: (*S) uint8 class indices, 0 outside the case and where not valid.
        valid: (*S) bool, False where the label says "ignore", outside the case and without a label.
        trusted: the case is known to be clean.
        case: its id.
        index: its number in the cache.
        start: first voxel of the patch in the case; negative where the patch is larger than the case.
        memory: (K, *S) float32, background outside the case; None when nothing is remembered.
        classes: K.
        raters: (R, *S) uint8 class indices of all raters of the run, `IGNORED` outside the case, where a rater
            left a voxel out and for raters who did not draw the case; None in a run with one label per case.
        rated: (R,) bool, who drew the case.
    """

    image: np.ndarray
    label: np.ndarray
    valid: np.ndarray
    trusted: bool
    case: str
    index: int
    start: tuple[int, ...]
    memory: np.ndarray | None
    classes: int
    raters: np.ndarray | None = None
    rated: np.ndarray | None = None


def generator(seed: int, epoch: int, index: int, stream: str) -> np.random.Generator:
    """The random numbers of one draw; streams ("order", "patch", "augment") are independent of each other."""
    # Counters one apart in the third word are 2^128 numbers apart: draws never overlap.
    counter = [0, 0, index & _MASK, epoch & _MASK]
    return np.random.Generator(np.random.Philox(key=[seed & _MASK, _STREAMS[stream]], counter=counter))


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, cases: int, stream: str = "order") -> np.ndarray:
    """The permutation of case numbers that epoch `epoch` walks through."""
    numbers = generator(seed, epoch, 0, stream).permutation(cases)
    numbers.flags.writeable = False
    return numbers


def trusted_places(batch: int, share: float) -> int:
    """How many of a batch are drawn from the trusted cases: about `share` of it, at least one, never all."""
    return min(max(1, round(share * batch)), batch - 1) if share > 0 else 0


def trusted_case(trusted: Sequence[int], *, seed: int, place: int) -> int:
    """Which trusted case comes at place `place` (from 0) of all places for trusted cases in a run."""
    epoch, index = divmod(place, len(trusted))
    return trusted[int(order(seed, epoch, len(trusted), "trusted")[index])]


def draw(
    cache: Cache,
    *,
    seed: int,
    epoch: int,
    index: int,
    patch: Sequence[int],
    foreground: float,
    memory: Remembered | None = None,
    case_number: int | None = None,
) -> Sample:
    """The patch number `index` of epoch `epoch`.

    Args:
        cache: prepared cases.
        seed: of the run.
        epoch: from 0.
        index: from 0, below the number of cases.
        patch: spatial shape of the patch.
        foreground: share of patches that are centred on a voxel of a random foreground class of the case.
        memory: what the method remembers of a case, by number; cropped like the label.
        case_number: take the patch from this case instead of the one whose turn it is.
    """
    number = int(order(seed, epoch, len(cache))[index]) if case_number is None else case_number
    rng = generator(seed, epoch, index, "patch")
    start = _start(rng, cache.shape(number), patch, cache.foreground(number), foreground)
    case, prepared = cache.case(number), cache[number]
    label, valid = _label(prepared.label, prepared.valid, start, patch)
    remembered = memory(number) if memory is not None else None
    raters, rated = _raters(cache, number, start, patch) if cache.raters else (None, None)
    return Sample(
        image=window(prepared.image, start, patch),
        label=label,
        valid=valid,
        trusted=case.trusted,
        case=case.id,
        index=number,
        start=start,
        memory=None if remembered is None else _memory(np.asarray(remembered), start, patch),
        classes=cache.plan.num_classes,
        raters=raters,
        rated=rated,
    )


def window(array: np.ndarray, start: Sequence[int], patch: Sequence[int], fill: float = 0) -> np.ndarray:
    """The part of `array` (..., *P) at `start`, (..., *patch); `fill` beyond its borders. May be a view."""
    sizes = array.shape[-len(patch) :]
    inner = [slice(max(s, 0), min(s + p, n)) for s, p, n in zip(start, patch, sizes, strict=True)]
    source: tuple[Any, ...] = (..., *inner)
    part: np.ndarray = array[source]
    if part.shape[-len(patch) :] == tuple(patch):
        return part
    whole = np.full((*array.shape[: -len(patch)], *patch), fill, array.dtype)
    offset = [slice(i.start - s, i.stop - s) for i, s in zip(inner, start, strict=True)]
    target: tuple[Any, ...] = (..., *offset)
    whole[target] = part
    return whole


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch.

    `memory` is there as soon as one sample has one; a case without memory is remembered as its given label.
    """
    batch: Batch = {
        "image": torch.from_numpy(np.stack([s.image for s in samples])),
        "label": torch.from_numpy(np.stack([s.label for s in samples])).long(),
        "valid": torch.from_numpy(np.stack([s.valid for s in samples])),
        "trusted": torch.tensor([s.trusted for s in samples]),
        "case": [s.case for s in samples],
        "index": torch.tensor([s.index for s in samples]),
    }
    if any(s.memory is not None for s in samples):
        maps = [_as_map(s) if s.memory is None else s.memory for s in samples]
        batch["memory"] = torch.from_numpy(np.stack(maps))
    if all(s.raters is not None and s.rated is not None for s in samples):
        votes = torch.from_numpy(np.stack([s.raters for s in samples if s.raters is not None])).long()
        batch["raters"] = votes.masked_fill_(votes == IGNORED, -1)
        batch["rated"] = torch.from_numpy(np.stack([s.rated for s in samples if s.rated is not None]))
    return batch


class Patches(Dataset[Sample]):
    """All samples of a training run by position: number i is draw `i % cases` of epoch `i // cases`.

    For other people's loops: `DataLoader(Patches(cache, ...), batch_size=8, collate_fn=collate)`. Do not
    shuffle; the order is already random, and resuming means starting at a later position.

    Args:
        cache: prepared cases.
        patch: spatial shape; the plan's by default.
        epochs: how often each case is drawn.
        seed: decides order and places.
        foreground: share of patches centred on foreground.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        patch: Sequence[int] | None = None,
        epochs: int = 1,
        seed: int = 0,
        foreground: float = 0.33,
        memory: Remembered | None = None,
    ) -> None:
        self.cache, self.patch = cache, tuple(patch or cache.plan.patch)
        self.epochs, self.seed, self.foreground, self.memory = epochs, seed, foreground, memory

    def __len__(self) -> int:
        return self.epochs * len(self.cache)

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        epoch, index = divmod(position, len(self.cache))
        return draw(
            self.cache,
            seed=self.seed,
            epoch=epoch,
            index=index,
            patch=self.patch,
            foreground=self.foreground,
            memory=self.memory,
        )


def _start(
    rng: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    classes: Sequence[np.ndarray],
    foreground: float,
) -> tuple[int, ...]:
    """Where the patch begins: anywhere, or around a foreground voxel; a smaller case lies in its middle."""
    where = rng.random(len(patch))
    on_foreground = rng.random() < foreground
    voxel = None
    if on_foreground and len(classes):
        places = classes[int(rng.integers(len(classes)))]
        voxel = places[int(rng.integers(len(places)))]
    start = []
    for axis, (size, extent) in enumerate(zip(shape, patch, strict=True)):
        room = size - extent
        if room <= 0:
            start.append(-(-room // 2))
        elif voxel is None:
            start.append(int(where[axis] * (room + 1)))
        else:
            start.append(min(max(int(voxel[axis]) - extent // 2, 0), room))
    return tuple(start)


def _label(
    label: np.ndarray | None, valid: np.ndarray | None, start: Sequence[int], patch: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    if label is None:
        return np.zeros(patch, np.uint8), np.zeros(patch, bool)
    if valid is None:
        inside = all(s >= 0 and s + p <= n for s, p, n in zip(start, patch, label.shape, strict=True))
        valid = np.ones(patch if inside else label.shape, bool)
        return window(label, start, patch), valid if inside else window(valid, start, patch)
    return window(label, start, patch), window(valid, start, patch)


def _raters(
    cache: Cache, number: int, start: Sequence[int], patch: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The patch of every rater of the run, (R, *patch), and which of them drew the case, (R,)."""
    rows, masks = list(cache.rows(number)), cache[number].raters
    whole = np.full((len(cache.raters), *patch), IGNORED, np.uint8)
    rated = np.zeros(len(cache.raters), bool)
    if masks is not None:
        whole[rows], rated[rows] = window(masks, start, patch, fill=IGNORED), True
    return whole, rated


def _memory(remembered: np.ndarray, start: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    part = window(remembered[1:], start, patch).astype(np.float32)
    background = window(remembered[:1], start, patch, fill=1).astype(np.float32)
    return np.concatenate([background, part])


def _as_map(sample: Sample) -> np.ndarray:
    classes = np.arange(sample.classes, dtype=np.uint8).reshape(-1, *[1] * sample.label.ndim)
    hot: np.ndarray = sample.label == classes
    return hot.astype(np.float32)
