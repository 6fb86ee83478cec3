"""The picture a run makes of itself: where the labels look wrong now."""

from __future__ import annotations

import numpy as np
import torch

from maskmend import draw
from maskmend.data.cache import Cache
from maskmend.methods.base import Method
from maskmend.predict.sliding import predict_many
from maskmend.train.memory import Memory
from maskmend.train.revision import given_label

SHOWN, LOOKED_AT = 4, 48


@torch.no_grad()
def training_picture(method: Method, cache: Cache, memory: Memory) -> bytes:
    """PNG of the cases with the largest estimated share of wrong voxels: image, given label, pseudo label, noise.

    At most 48 cases, evenly spread over the training set, are looked at, so that the picture stays cheap.
    """
    method.eval()
    device = next(method.parameters()).device
    chosen = np.unique(np.linspace(0, len(cache) - 1, min(LOOKED_AT, len(cache))).astype(int)).tolist()
    rows = []
    for index, probs in zip(chosen, _probabilities(method, cache, memory, chosen, device), strict=True):
        label = given_label(cache[index])
        noise = method.noise(probs[None].to(device), label[None].to(device))[0].cpu().numpy()
        foreground = max(int((label > 0).sum()), 1)
        rows.append((float(noise.sum()) / foreground, index, probs.argmax(dim=0).numpy(), noise))
    rows.sort(key=lambda row: -row[0])
    return draw.noise_rows(
        [
            (cache.ids[i], cache[i].image[0], given_label(cache[i]).numpy(), pseudo, noise)
            for _, i, pseudo, noise in rows[:SHOWN]
        ]
    )


def _probabilities(method: Method, cache: Cache, memory: Memory, chosen: list[int], device: torch.device):  # type: ignore[no-untyped-def]
    remembered = [memory(i) for i in chosen]
    if all(r is not None for r in remembered):
        return (torch.from_numpy(r.astype("float32")) for r in remembered if r is not None)
    patch = cache.plan.patch
    return predict_many(
        method.predict, (cache[i].image for i in chosen), patch=patch, classes=cache.plan.num_classes, overlap=0.25,
        batch=16 if len(patch) == 2 else 2, device=device,
    )  # fmt: skip
