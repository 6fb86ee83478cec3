"""Look at every whole case between epochs and let the method remember it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric

from maskmend.data.preprocess import Prepared
from maskmend.methods.base import Method
from maskmend.predict.sliding import predict_many
from maskmend.train.engine import summed
from maskmend.train.memory import Memory

if TYPE_CHECKING:
    from maskmend.train.loop import Job

BATCH_2D = 64  # windows per forward pass without gradients
BATCH_3D = 4


def given_label(case: Prepared) -> torch.Tensor:
    """Class indices (*P) long of a training case, which always has a label."""
    assert case.label is not None
    return torch.from_numpy(case.label.astype("int64"))


@torch.no_grad()
def revise_all(
    fabric: Fabric, method: Method, job: Job, memory: Memory, version: int, progress: float
) -> None:
    """Make a new version of the memory from one look at every case, shared out over the processes.

    Args:
        memory: serves the new version when this returns.
        version: its name, the step before which it is made.
    """
    method.eval()
    mine = range(fabric.global_rank, len(job.cache), fabric.world_size)
    looks = predict_many(
        method.observe_case,
        (job.cache[i].image for i in mine),
        patch=job.plan.patch,
        classes=job.plan.num_classes,
        overlap=0.25,
        batch=BATCH_2D if job.plan.ndim == 2 else BATCH_3D,
        device=fabric.device,
        numbers=mine,
    )
    for index, probs in zip(mine, looks, strict=True):
        _revise_one(method, job, memory, version, index, probs, progress)
    memory.finish()
    _share_case_state(fabric, method, mine)
    method.after_revision(progress)
    fabric.barrier()
    memory.switch(version)


def _revise_one(
    method: Method, job: Job, memory: Memory, version: int, index: int, probs: torch.Tensor, progress: float
) -> None:
    case, before = job.cache[index], memory(index)
    label = given_label(case)
    valid = torch.ones_like(label, dtype=torch.bool) if case.valid is None else torch.tensor(case.valid)
    remembered = None if before is None else torch.from_numpy(before.astype("float32"))
    new = method.revise(index, probs, label, valid, remembered, progress, torch.from_numpy(case.image))
    if new is not None:
        memory.write(version, index, new)


def _share_case_state(fabric: Fabric, method: Method, mine: range) -> None:
    """Every process ends with the rows of all: each contributes its own and zeros elsewhere."""
    if fabric.world_size > 1 and method.case_state.numel():
        own = torch.zeros_like(method.case_state)
        own[list(mine)] = method.case_state[list(mine)]
        method.case_state.copy_(summed(fabric, own))
