"""Devices, precision and processes: the only file that knows Lightning Fabric."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException

from maskmend.errors import ResourceError, UsageError, UserError
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

    Raises:
        ResourceError: the GPU's memory does not suffice. KeyboardInterrupt: stopped before there was a state to save.
        UserError: as `work` raised it, in whichever process.
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
    if processes == 1:
        _work(fabric, work, job, device)
        return
    logging.getLogger("torch.multiprocessing.spawn").setLevel(
        logging.ERROR
    )  # how it ends the others is its affair
    faults = multiprocessing.get_context("spawn").SimpleQueue()
    with _handing_on_signals() as asked:
        try:
            fabric.launch(_quiet_work, work, job, device, faults)
        except ProcessException:  # the child's error, as a text
            if not faults.empty():
                raise faults.get() from None
            if asked:  # so early that the children did not know yet what to do about it
                raise KeyboardInterrupt from None
            raise


def _work(fabric: Fabric, work: Callable[[Fabric, Any], None], job: Any, device: str) -> None:
    try:
        work(fabric, job)
    except torch.cuda.OutOfMemoryError as fault:
        free = torch.cuda.mem_get_info()[0] / 2**30 if torch.cuda.is_available() else 0.0
        text = ". ".join(str(fault).split(". ")[:2])  # the second sentence says how much was asked for
        remedy = "halve train.batch=, shrink train.patch=, or use a smaller network.options={base: 8}"
        raise ResourceError(f"GPU out of memory: {text} ({free:.1f} GiB free)", device, remedy) from fault


def _quiet_work(
    fabric: Fabric, work: Callable[[Fabric, Any], None], job: Any, device: str, faults: Any
) -> None:
    """In a child: what is the user's to mend goes to the parent whole, for only texts of exceptions do."""
    quiet(fabric.global_rank != 0)
    try:
        _work(fabric, work, job, device)
    except UserError as fault:
        faults.put(fault)
        raise
    # Else the threads of the group run on while Python ends, and now and then abort a process whose work is done.
    torch.distributed.destroy_process_group()


@contextmanager
def _handing_on_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are the children's to obey, who save the state; a second Ctrl-C stops at once.

    Yields:
        The signals that came.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def handle(number: int, frame: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)
        # A terminal's Ctrl-C has reached the children already, which take one more SIGTERM for the same wish. On
        # Windows, where every such signal kills, there is nothing else.
        for child in multiprocessing.active_children() if os.name != "nt" else ():
            child.terminate()

    before = {one: signal.signal(one, handle) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, old in before.items():
            signal.signal(number, old)


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
