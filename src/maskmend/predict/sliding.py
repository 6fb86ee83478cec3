"""Predict arrays of any size with a network of fixed patch size: overlapping windows, blended.

MONAI's `sliding_window_inference` is the reference the tests compare with, but it takes one image at a time
and keeps a count map and a padded copy beside the result. Windows here lie on a grid, so their Gaussian
weights factor by axis and are normalised once per axis: the blended sum is already the mean, no count map and
no second pass, and peak memory is the image plus the result. Windows of different images share a batch.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

Predictor = Callable[..., Tensor]
Image = np.ndarray | Tensor


def predict_array(
    predictor: Predictor,
    image: Image,
    *,
    patch: Sequence[int],
    classes: int,
    overlap: float = 0.5,
    batch: int = 4,
    mirror: Sequence[int] = (),
    device: str | torch.device = "cpu",
    tick: Callable[[int], None] | None = None,
) -> Tensor:
    """Class probabilities of one image.

    Args:
        predictor: maps (B, C, *patch) on `device` to probabilities (B, K, *patch).
        image: (C, *S), normalised as in training; a memory-mapped array is read window by window.
        patch: spatial size the predictor expects. Axes where the image is smaller are padded with zeros, half
            on each side, and the padding is cut off the result.
        classes: K.
        overlap: share of a window that its neighbour covers too, in [0, 1).
        batch: windows per call of the predictor.
        mirror: spatial axes (0 is the first of *S) to flip; the mean over all 2^len(mirror) flips is taken.
        device: where the predictor runs. The result is blended in main memory.
        tick: called with the number of windows just finished, for progress bars.

    Returns:
        (K, *S) float32 on the CPU; sums to 1 over K wherever the predictor's output does.
    """
    return next(
        predict_many(
            predictor, [image], patch=patch, classes=classes, overlap=overlap, batch=batch, mirror=mirror,
            device=device, tick=tick,
        )
    )  # fmt: skip


def predict_many(
    predictor: Predictor,
    images: Iterable[Image],
    *,
    patch: Sequence[int],
    classes: int,
    overlap: float = 0.5,
    batch: int = 4,
    mirror: Sequence[int] = (),
    device: str | torch.device = "cpu",
    tick: Callable[[int], None] | None = None,
    numbers: Iterable[int] | None = None,
    steady: bool = False,
) -> Iterator[Tensor]:
    """Class probabilities of many images, in order; arguments as in `predict_array`.

    With `numbers`, one for each image, the predictor is also given `index=`, the number of each window's image,
    (B,) long.

    With `steady` an image gets the same probabilities to the last bit whichever others are predicted in the same call,
    as a prediction that goes on after a kill needs: convolutions sum in another order for batches of another size,
    so batches shared by several images are filled up with zeros.

    Images of few windows are batched together, so that many small images cost what the predictor itself
    costs. An image of at least `batch` windows is finished before the next one is read: memory never holds
    two large results.
    """
    queue: deque[_Job] = deque()
    pending: list[tuple[_Job, _Window]] = []
    flips = [axes for n in range(len(mirror) + 1) for axes in itertools.combinations(mirror, n)]

    def flush() -> None:
        if pending:
            shared = steady and len(pending[0][0].windows) < batch
            _run(predictor, pending, flips, torch.device(device), batch if shared else len(pending))
            if tick is not None:
                tick(len(pending))
            pending.clear()

    # `map` and `del` keep no name on a finished image or result: those of a large volume must be gone before
    # the next one is read.
    begin = partial(_Job.of, classes=classes, patch=patch, overlap=overlap)
    for job in map(begin, images, itertools.repeat(None) if numbers is None else numbers):
        queue.append(job)
        if steady and len(job.windows) >= batch:
            flush()
        for window in job.windows:
            pending.append((job, window))
            if len(pending) == batch:
                flush()
        if len(job.windows) >= batch:
            flush()
        del job
        while queue and queue[0].left == 0:
            yield queue.popleft().probs
    flush()
    while queue:
        yield queue.popleft().probs


def count_windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """How many windows an image of spatial `shape` takes; the total for a progress bar."""
    return math.prod(len(_starts(n, p, overlap)) for n, p in zip(shape, patch, strict=True))


@dataclass(frozen=True)
class _Span:
    """One axis of one window: where it lies in the image, in the patch, and its share of each voxel."""

    image: slice
    patch: slice
    weight: Tensor


_Window = tuple[_Span, ...]


def _inside(window: _Window) -> tuple[slice, ...]:
    return (slice(None), *(span.image for span in window))


def _local(window: _Window) -> tuple[slice, ...]:
    return (slice(None), *(span.patch for span in window))


@dataclass(eq=False)
class _Job:
    """An image being predicted; `left` counts the windows still to come."""

    image: Image
    patch: tuple[int, ...]
    windows: list[_Window]
    probs: Tensor
    left: int
    number: int | None = None

    @classmethod
    def of(cls, image: Image, number: int | None, classes: int, patch: Sequence[int], overlap: float) -> _Job:
        shape = tuple(image.shape[1:])
        if len(shape) != len(patch):
            raise ValueError(f"image {tuple(image.shape)} and patch {tuple(patch)} differ in spatial axes")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap {overlap} is not in [0, 1)")
        spans = [_spans(n, p, overlap) for n, p in zip(shape, patch, strict=True)]
        windows = list(itertools.product(*spans))
        return cls(image, tuple(patch), windows, torch.zeros(classes, *shape), len(windows), number)

    def cut(self, window: _Window, out: Tensor) -> None:
        """Copy the window's voxels into `out` (C, *patch), which is left as it is beyond the image."""
        part = self.image[_inside(window)]
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(part if part.flags.writeable else part.copy())
        out[_local(window)].copy_(part)

    def add(self, window: _Window, probs: Tensor) -> None:
        self.left -= 1
        if len(self.windows) == 1:  # its weight is 1 everywhere
            self.probs.copy_(probs[_local(window)])
            return
        weight = window[0].weight
        for span in window[1:]:
            weight = weight[..., None] * span.weight
        self.probs[_inside(window)].addcmul_(probs[_local(window)], weight)


def _run(
    predictor: Predictor,
    pending: list[tuple[_Job, _Window]],
    flips: list[tuple[int, ...]],
    device: torch.device,
    size: int,
) -> None:
    first = pending[0][0]
    patches = torch.zeros(size, first.image.shape[0], *first.patch)
    for (job, window), out in zip(pending, patches, strict=False):
        job.cut(window, out)
    patches = patches.to(device)
    if first.number is not None:
        numbers = [job.number for job, _ in pending] + [first.number] * (size - len(pending))
        predictor = partial(predictor, index=torch.tensor(numbers, device=device))
    with torch.inference_mode():
        total: Tensor | None = None
        for axes in flips:
            dims = [axis + 2 for axis in axes]
            probs = predictor(patches.flip(dims) if dims else patches).float()
            probs = probs.flip(dims) if dims else probs
            total = probs if total is None else total + probs
        assert total is not None  # the empty flip is always there
        total = (total / len(flips) if len(flips) > 1 else total).cpu()
    expected = (size, first.probs.shape[0], *first.patch)
    if tuple(total.shape) != expected:
        raise ValueError(f"the predictor gave {tuple(total.shape)} where {expected} was expected")
    for (job, window), probs in zip(pending, total, strict=False):
        job.add(window, probs)


def _starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxel of each window along one axis; negative where the patch is larger, to centre the image."""
    if size <= patch:
        return [-((patch - size) // 2)]
    step = max(1, int(patch * (1 - overlap)))
    count = math.ceil((size - patch) / step) + 1
    # Evenly spread rather than flushed to the end: no voxel is only ever seen near the edge of two
    # windows that nearly coincide.
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


@lru_cache(64)
def _spans(size: int, patch: int, overlap: float) -> tuple[_Span, ...]:
    starts = _starts(size, patch, overlap)
    places = [(slice(max(s, 0), min(s + patch, size)), s) for s in starts]
    bell = _bell(patch)
    total = torch.zeros(size, dtype=torch.float64)
    for inside, start in places:
        total[inside] += bell[inside.start - start : inside.stop - start]
    spans = []
    for inside, start in places:
        local = slice(inside.start - start, inside.stop - start)
        spans.append(_Span(inside, local, (bell[local] / total[inside]).float()))
    return tuple(spans)


def _bell(patch: int) -> Tensor:
    """Gaussian weights along one axis, sigma an eighth of the patch, as MONAI and nnU-Net use."""
    offset = torch.arange(patch, dtype=torch.float64) - (patch - 1) / 2
    return torch.exp(-0.5 * (offset / (0.125 * patch)) ** 2)
