"""Batches that starve a method: classes that vanish, images without contrast, values beyond all measure."""

from __future__ import annotations

import pytest
import torch
from tests_toys import toy_batch, toy_network

from maskmend import methods

NAMES = methods.names()


def _after_some_steps(name: str, change) -> list[torch.Tensor]:
    """Loss and gradients early, in the middle and late in a training on one odd batch."""
    torch.manual_seed(0)
    method = methods.load(name)(lambda: toy_network(2))
    method.begin(4, [0, 2] if "trusted" in method.needs else [])
    method.begin_raters(3, 3)
    batch = toy_batch(2, raters=True)
    if "trusted" in method.needs:
        batch["trusted"][::2] = True
    change(batch)
    found = []
    for progress in (0.0, 0.3, 0.6, 1.0):
        torch.manual_seed(1)
        method.zero_grad()
        output = method.training_step(batch, progress)
        output.loss.backward()
        method.after_step(progress)
        found += [output.loss.detach(), *(p.grad for p in method.parameters() if p.grad is not None)]
    with torch.no_grad():
        found.append(method.eval().predict(batch["image"]))
    return found


def _one_class(value: int):
    def change(batch) -> None:
        batch["label"][:] = value
        batch["raters"][:] = value

    return change


def _one_voxel(batch) -> None:
    batch["label"][:] = 0
    batch["label"][0, 5, 5] = 2
    batch["valid"][:] = False
    batch["valid"][0, 5, 5] = True


CHANGES = {
    "background alone": _one_class(0),
    "foreground alone": _one_class(2),
    "one voxel counts": _one_voxel,
    "constant image": lambda batch: batch["image"].fill_(0.0),
    "bright image": lambda batch: batch["image"].mul_(1e4),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_loss_gradients_and_probabilities_stay_finite(name, what):
    found = _after_some_steps(name, CHANGES[what])
    assert all(torch.isfinite(one).all() for one in found)
    assert torch.allclose(found[-1].sum(dim=1), torch.ones(()), atol=1e-4)
