"""A second implementation of the losses over kept voxels, in float64 NumPy, and labels with known flaws."""

from __future__ import annotations

import numpy as np
import torch
from tests_toys import toy_batch


def numpy_probs(logits):
    z = logits.detach().numpy().astype(np.float64)
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def numpy_ce(probs, label):
    return -np.log(np.take_along_axis(probs, label[:, None], 1)[:, 0])


def numpy_ce_dice(probs, label, keep):
    ce = numpy_ce(probs, label)[keep].mean()
    scores = []
    for c in range(1, probs.shape[1]):
        p, g = probs[:, c][keep], (label == c)[keep]
        scores.append((2 * (p * g).sum() + 1e-5) / (p.sum() + g.sum() + 1e-5))
    return ce + 1 - np.mean(scores)


def numpy_keep(loss, label, valid, forget):
    """The smallest losses of each class, by sorting."""
    keep = np.zeros_like(valid)
    for number, share in enumerate(forget):
        places = np.argwhere(valid & (label == number))
        order = np.argsort(loss[tuple(places.T)])
        kept = places[order[: max(1, int(np.ceil((1 - share) * len(places) - 1e-9)))]]
        keep[tuple(kept.T)] = True
    return keep


def flawed_batch(share=0.2, ndim=2, seed=0):
    """The toy batch with a share of labels replaced by the next class, and where that was done."""
    batch = toy_batch(ndim)
    wrong = torch.rand(batch["label"].shape, generator=torch.Generator().manual_seed(seed)) < share
    batch["label"] = torch.where(wrong, (batch["label"] + 1) % 3, batch["label"])
    return batch, wrong & batch["valid"]


def trained(method, batch, steps=60, progress=0.0):
    """The method after some steps on one batch."""
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        method.training_step(batch, progress).loss.backward()
        optimizer.step()
        method.after_step(progress)
    return method
