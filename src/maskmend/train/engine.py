"""Devices, precision and processes: the only file that knows Lightning Fabric."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from maskmend.errors import ResourceError, UsageError
from maskmend.progress import message, quiet


def choose_device(name: str) -> str:
    """The device that is there for "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        UsageError: a GPU was asked for by name and there is none.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("no CUDA device is visible", "device", "use device=auto or device=cpu")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}", "device", "one of: auto, cpu, cuda, cuda:N")
    return name


def choose_precision(name: str, device: str) -> str:
    """Mixed precision only where the hardware has it; on a CPU bf16 is slower than float32."""
    if name == "auto":
        name = "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[name]


def launch(
    work: Callable[[Fabric, Any], None], job: Any, *, device: str, precision: str, processes: int
) -> None:
    """Run `work(fabric, job)` in one process, or in `processes` of them joined by DDP.

    Args:
        work: a module-level function (child processes import it).
        job: picklable when there is more than one process.
    """
    device = choose_device(device)
    kind, _, number = device.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=kind,
            devices=[int(number)] if number else processes,
            strategy="auto" if processes == 1 else "ddp_spawn",
            precision=choose_precision(precision, device),
        )
    try:
        if processes == 1:
            work(fabric, job)
        else:
            fabric.launch(_quiet_work, work, job)
    except torch.cuda.OutOfMemoryError as fault:
        free = torch.cuda.mem_get_info()[0] / 2**30 if torch.cuda.is_available() else 0.0
        text = ". ".join(str(fault).split(". ")[:2])  # the second sentence says how much was asked for
        remedy = "halve train.batch=, shrink train.patch=, or use a smaller network.options={base: 8}"
        raise ResourceError(f"GPU out of memory: {text} ({free:.1f} GiB free)", device, remedy) from fault


def _quiet_work(fabric: Fabric, work: Callable[[Fabric, Any], None], job: Any) -> None:
    quiet(fabric.global_rank != 0)
    work(fabric, job)


def summed(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The sum over all processes; the tensor itself when there is one."""
    if fabric.world_size == 1:
        return tensor
    total: Tensor = fabric.all_reduce(tensor, reduce_op="sum")
    return total


def any_process(fabric: Fabric, flag: bool) -> bool:
    """True on every process as soon as it is true on one, so that all stop at the same step."""
    if fabric.world_size == 1:
        return flag
    return bool(summed(fabric, torch.tensor(float(flag), device=fabric.device)).item() > 0)


def announce(device: str) -> None:
    """One line about a missing GPU, because training on a CPU is what surprises people."""
    if choose_device(device) == "cpu" and device == "auto":
        message(f"no GPU found: training on the CPU with {torch.get_num_threads()} threads")
