"""Who does the runs: this process, or Ray workers on this machine or a cluster. The only file that knows Ray."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from maskmend.errors import ResourceError, UsageError

Item = TypeVar("Item")
RETRIES = 5  # how often a run is begun again elsewhere when its node or worker dies
POLL_S = 1.0


class Pool(Protocol):
    """Something that works through items."""

    @property
    def slots(self) -> int:
        """How many runs go on at the same time."""

    def map(
        self, work: Callable[[Item], dict[str, Any]], items: Sequence[Item]
    ) -> Iterator[tuple[Item, dict[str, Any]]]:
        """Each item with its result, in the order in which they finish."""

    def close(self) -> None:
        """Let go of the workers."""


def open_pool(
    workers: int | None, address: str | None, *, threads: int = 1, runs_per_gpu: int = 4, gpu: bool = False
) -> Pool:
    """The pool that was asked for.

    Args:
        workers: runs at the same time; 0: one after the other in this process; None: as many as there are cores (or
            room on the GPUs), in this process when Ray is not installed.
        address: of a running Ray cluster, e.g. "auto" or "10.0.0.1:6379"; None: this machine.
        threads: CPU cores of one run.
        runs_per_gpu: runs that share a GPU.
        gpu: the runs use GPUs.

    Raises:
        UsageError: Ray is needed and not installed, or the address is refused.
    """
    if workers == 0 and address is None:
        return InProcess()
    try:
        import ray  # noqa: F401
    except ImportError:
        if workers is None and address is None:
            return InProcess()
        remedy = "pip install 'maskmend[benchmark]', or --workers 0 to run in this process"
        raise UsageError("Ray is not installed", "--workers", remedy) from None
    return RayPool(workers, address, threads=threads, share=1 / runs_per_gpu if gpu else 0.0)


class InProcess:
    """One run after the other, here."""

    slots = 1

    def map(
        self, work: Callable[[Item], dict[str, Any]], items: Sequence[Item]
    ) -> Iterator[tuple[Item, dict[str, Any]]]:
        """As `Pool.map`."""
        for item in items:
            yield item, work(item)

    def close(self) -> None:
        """Nothing to let go of."""


class RayPool:
    """Ray tasks; a task whose node dies is begun again on another one.

    Args:
        workers: most runs at the same time; None: what the cluster has room for, also as nodes come and go.
        address: of a running cluster; None starts Ray on this machine.
        threads: CPU cores of one run.
        share: part of a GPU that one run takes.
    """

    def __init__(self, workers: int | None, address: str | None, *, threads: int, share: float) -> None:
        self.workers, self.needs = workers, {"num_cpus": threads, "num_gpus": share}
        self.own = _connect(workers, address, threads)

    @property
    def slots(self) -> int:
        """What the cluster has room for now, at most `workers`."""
        import ray

        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        room = have.get("CPU", 0) / self.needs["num_cpus"]
        if self.needs["num_gpus"]:
            room = min(room, have.get("GPU", 0) / self.needs["num_gpus"])
        return max(1, int(room if self.workers is None else min(room, self.workers)))

    def map(
        self, work: Callable[[Item], dict[str, Any]], items: Sequence[Item]
    ) -> Iterator[tuple[Item, dict[str, Any]]]:
        """As `Pool.map`; a run whose worker dies again and again gets {"status": "failed", ...}."""
        import ray

        task = ray.remote(work).options(max_retries=RETRIES, scheduling_strategy="SPREAD", **self.needs)
        waiting = list(reversed(items))
        running: dict[Any, Item] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.slots:
                    item = waiting.pop()
                    running[task.remote(item)] = item
                ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
                for reference in ready:
                    yield running.pop(reference), _result(reference)
        finally:  # Ctrl-C, or the caller stops early
            for reference in running:
                ray.cancel(reference, force=True)

    def close(self) -> None:
        """Stop Ray if it was started here, else leave the cluster as it is."""
        import ray

        if self.own:
            ray.shutdown()


def _result(reference: Any) -> dict[str, Any]:
    import ray

    try:
        result: dict[str, Any] = ray.get(reference)
    except ray.exceptions.RayError as fault:
        error = f"{type(fault).__name__}: {str(fault).strip().splitlines()[0]}"
        return {"status": "failed", "error": error, "traceback": traceback.format_exc()}
    return result


def _connect(workers: int | None, address: str | None, threads: int) -> bool:
    """Join or start Ray; True when it was started, or joined, by this call and is ours to leave."""
    import logging

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cores = max(threads, workers * threads if workers else os.cpu_count() or 1)
        memory = 128 * 2**20  # results are small
        quiet |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": memory}
    try:
        ray.init(address=address or "local", **quiet)
    except (ConnectionError, ValueError) as fault:
        remedy = "start one with `ray start --head`, or leave out --address"
        raise UsageError(f"no Ray cluster answers: {fault}", address, remedy) from fault
    except (OSError, RuntimeError) as fault:
        remedy = "see `maskmend doctor`, or --workers 0 to run in this process"
        raise ResourceError(f"Ray cannot start: {fault}", None, remedy) from fault
    return True
