"""Batches by the number of their step, drawn here or by worker processes, and what happens when those fail."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from maskmend.data.augment import Choice, choose
from maskmend.data.sampling import collate, draw, generator, order, trusted_case, trusted_places
from maskmend.errors import ResourceError, UserError
from maskmend.methods.base import Batch
from maskmend.train.memory import Memory

if TYPE_CHECKING:
    from maskmend.train.loop import Job

Drawn = tuple[Batch, list[Choice]]
_SCARCE = re.compile("shared memory|can't allocate memory|Cannot allocate memory|Too many open files", re.I)


class WorkerLost(Exception):
    """A worker process was killed, or could not hand over what it drew."""


class DrawFault(RuntimeError):
    """An exception while a batch was drawn: its cases and the original traceback."""


class Stream(Dataset[Drawn]):
    """Batch number `step` of this process: a pure function of (seed, step, rank), whichever worker makes it.

    Args:
        job: what is trained.
        memory: what the method remembers.
        rank: number of this process.
        world: how many processes there are.
        trusted: numbers of the trusted cases.
        trusted_share: share of each process's part of a batch that comes from them; the first places of it.
    """

    def __init__(
        self,
        job: Job,
        memory: Memory,
        rank: int,
        world: int,
        *,
        trusted: Sequence[int] = (),
        trusted_share: float = 0.0,
    ) -> None:
        self.job, self.memory, self.rank, self.world = job, memory, rank, world
        self.trusted, self.share = trusted, trusted_share if trusted else 0.0

    def __getitem__(self, step: int) -> Drawn:
        train, plan = self.job.config.train, self.job.plan
        samples, choices = [], []
        for epoch, index, case_number in self._places(step):
            sample = draw(
                self.job.cache,
                seed=train.seed,
                epoch=epoch,
                index=index,
                patch=plan.patch,
                foreground=train.foreground,
                memory=self.memory,
                case_number=case_number,
            )
            samples.append(sample)
            rng = generator(train.seed, epoch, index, "augment")
            choices.append(choose(rng, plan.ndim, train.augment, plan.flips, voxel_mm=plan.spacing_mm))
        return collate(samples), choices

    def cases_of(self, step: int) -> list[str]:
        """Ids of the cases in this process's part of a batch."""
        cache, seed = self.job.cache, self.job.config.train.seed
        numbers = (
            int(order(seed, epoch, len(cache))[index]) if number is None else number
            for epoch, index, number in self._places(step)
        )
        return sorted({cache.case(number).id for number in numbers})

    def _places(self, step: int) -> Iterator[tuple[int, int, int | None]]:
        """Epoch, place in it and, where a trusted case takes the place, its number."""
        cases, batch = len(self.job.cache), self.job.plan.batch
        numbers = range(step * batch + self.rank, (step + 1) * batch, self.world)
        for place, number in enumerate(numbers):
            yield *divmod(number, cases), self._trusted(step, place, len(numbers))

    def _trusted(self, step: int, place: int, size: int) -> int | None:
        """The trusted case that takes this place of a batch, or None where the epoch's order decides."""
        places = trusted_places(size, self.share)
        if place >= places:
            return None
        turn = (step * self.world + self.rank) * places + place
        return trusted_case(self.trusted, seed=self.job.config.train.seed, place=turn)


def loaded(stream: Stream, steps: Sequence[int], workers: int) -> Iterator[Drawn]:
    """The batches of these steps in their order.

    Args:
        stream: draws them.
        steps: their numbers.
        workers: processes that draw ahead; 0: this one draws when asked.

    Raises:
        WorkerLost: a worker was killed, or had no memory to hand a batch over; the batches so far are good.
        DrawFault: an exception of ours or of a library, with its traceback. UserError: as it was raised.
        ResourceError: this process has not enough memory.
    """
    loader = DataLoader(_Guarded(stream), batch_size=None, sampler=list(steps), num_workers=workers)
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    started = [child for child in multiprocessing.active_children() if child not in others]
    if workers and threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        # PyTorch's handler raises wherever this process happens to be, even half-way through an optimiser step.
        # Without it the loader itself notices, within five seconds, when it waits for a batch.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        try:
            drawn = next(batches)
        except StopIteration:
            return
        except Exception as fault:
            # Faults of drawing are answers, so this one is of the workers. One killed while it hands a batch over
            # breaks the connection before it counts as dead: that comes as whatever the break looked like.
            if workers:
                raise WorkerLost(_lost(started, fault)) from fault
            raise
        if isinstance(drawn, _Failure):
            drawn.tell()
        yield drawn


def _lost(workers: Sequence[multiprocessing.process.BaseProcess], fault: Exception) -> str:
    for worker in workers:
        worker.join(timeout=1 / len(workers))
    dead = ", ".join(str(worker.pid) for worker in workers if not worker.is_alive())
    if dead:
        return f"worker process {dead} was lost: killed, or out of memory"
    return f"a worker process cannot hand over a batch ({fault})"


@dataclass(frozen=True)
class _Failure:
    """What went wrong in drawing a batch; returned, for exceptions lose their form between processes."""

    error: UserError | None
    text: str
    cases: list[str]
    scarce: bool
    worker: int | None

    def tell(self) -> None:
        """Raise what it stands for."""
        listed, last = ", ".join(self.cases), self.text.strip().splitlines()[-1]
        if self.error is not None:
            raise self.error
        if self.scarce and self.worker is not None:
            raise WorkerLost(f"worker {self.worker} cannot hand over a batch ({last})")
        if self.scarce:
            remedy = "make train.batch= or train.patch= smaller, or end other programs"
            raise ResourceError(f"not enough memory for a batch of the cases {listed} ({last})", None, remedy)
        raise DrawFault(f"drawing a batch of the cases {listed} failed\n{self.text}")


class _Guarded(Dataset[Any]):
    """A stream whose exceptions are answers."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> Drawn | _Failure:
        worker = get_worker_info()
        try:
            batch, choices = self.stream[step]
            if worker is not None:
                # Else the worker would do it after this returns, where a full /dev/shm is told to nobody and the
                # training waits for ever.
                for value in batch.values():
                    if isinstance(value, torch.Tensor):
                        value.share_memory_()
            return batch, choices
        except Exception as error:
            return _Failure(
                error=error if isinstance(error, UserError) else None,
                text=traceback.format_exc(),
                cases=self.stream.cases_of(step),
                scarce=isinstance(error, MemoryError) or bool(_SCARCE.search(str(error))),
                worker=None if worker is None else worker.id,
            )
