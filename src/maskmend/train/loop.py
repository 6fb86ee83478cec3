"""The only training loop. It knows steps, epochs and states; how to learn is the method's business."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.optim import AdamW

from maskmend.config import Config
from maskmend.data.augment import apply
from maskmend.data.cache import Cache
from maskmend.data.plan import Plan
from maskmend.errors import DataError, Interrupted
from maskmend.methods.base import Batch, Method, ramp
from maskmend.progress import LINE_EVERY_S, bar, clock, message
from maskmend.train import checkpoint, engine
from maskmend.train.memory import Memory
from maskmend.train.metrics_file import MetricsFile
from maskmend.train.revision import revise_all
from maskmend.train.run_folder import resume_command
from maskmend.train.stream import Drawn, Stream, WorkerLost, loaded
from maskmend.train.validation import Validation

LOG_EVERY = 10
ESTIMATE_AFTER = 5  # steps
WARM_UP = 0.05  # share of training over which the learning rate rises
CLIP = 12.0  # gradient norm


@dataclass
class Job:
    """What a process needs to train; travels to child processes."""

    folder: Path
    config: Config
    plan: Plan
    cache: Cache
    make_method: Callable[[], Method]
    held_out: Cache | None = None
    picture: Callable[[Method, Memory, int], None] | None = None
    finish: Callable[[], None] | None = None  # called by the first process when the last state is saved
    watch: Callable[[Method, Plan, int], None] | None = (
        None  # sees every step; must leave the method as it is
    )


def fit(fabric: Fabric, job: Job) -> None:
    """Train from the newest state in the folder (or from scratch) to `train.steps`.

    Raises:
        DataError: the loss became NaN or infinite.
        Interrupted: Ctrl-C or SIGTERM; the state is saved first.
    """
    train = job.config.train
    torch.manual_seed(train.seed)
    method = job.make_method()
    method.begin(len(job.cache), [i for i, case in enumerate(job.cache.cases) if case.trusted])
    if job.cache.raters:
        method.begin_raters(len(job.cache.raters), job.plan.num_classes)
    optimizer = _optimizer(method, train.lr, train.weight_decay)
    state = checkpoint.load(job.folder)
    if state is not None:
        method.load_state_dict(state["method"])
    wrapped, optimizer = fabric.setup(method, optimizer)
    wrapped.mark_forward_method("training_step")
    memory = Memory(job.folder / "memory", fabric.global_rank)
    step = 0
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        memory.switch(state["memory"])
        step = state["step"]
        message(f"going on after step {step} of {train.steps}")
    training = _Training(fabric, job, method, wrapped, optimizer, memory, step)
    training.restore(state)
    training.go()


class _Training:
    """The state of one call of `fit`, so that the loop itself reads as one page."""

    def __init__(
        self,
        fabric: Fabric,
        job: Job,
        method: Method,
        wrapped: Any,
        optimizer: Any,
        memory: Memory,
        step: int,
    ) -> None:
        self.fabric, self.job, self.train = fabric, job, job.config.train
        self.method, self.wrapped, self.optimizer, self.memory = method, wrapped, optimizer, memory
        self.step, self.workers = step, self.train.workers
        self.batch = job.plan.batch
        self.metrics = MetricsFile(
            job.folder, step, enabled=fabric.global_rank == 0, tensorboard=self.train.tensorboard
        )
        self.validation = Validation(job, fabric)
        self.stop_requested = False
        self.clock: deque[float] = deque(maxlen=ESTIMATE_AFTER + 1)  # when the first steps were done

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take over what is not in the networks: the best weights so far, the unfinished line of figures."""
        self.validation.restore(state)
        self.metrics.restore(state["metrics"] if state else None)

    def go(self) -> None:
        self.method.train()
        with _signals(self._request_stop):  # also while finishing: what is nearly done is not thrown away
            with bar("training", self.train.steps, start=self.step) as shown:
                while self.step < self.train.steps:
                    for batch in self._until_next_epoch():
                        self._one_step(batch)
                        shown.update(1, **self.metrics.latest)
                        self._estimate()
                        self._between_steps()
            self._save()
            self.metrics.close()
            if self.job.finish and self.fabric.global_rank == 0:
                self.job.finish()
            self.fabric.barrier()

    def _one_step(self, batch: Batch) -> None:
        progress = self.step / self.train.steps
        torch.manual_seed(_seed(self.train.seed, self.step, self.fabric.global_rank))
        _set_rate(self.optimizer, self.train.lr * schedule(progress))
        output = self.wrapped.training_step(batch, progress)
        loss = output.loss.detach().item()
        self._refuse_non_finite("loss", loss, batch["case"])
        self.fabric.backward(output.loss)
        norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=CLIP, error_if_nonfinite=False
        )
        if self.train.precision != "16" and norm is not None:  # in half precision the scaler skips such steps
            self._refuse_non_finite("gradient", norm.item(), batch["case"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(progress)
        self.step += 1
        self.metrics.add(self.step, loss, output.logs, write=self.step % LOG_EVERY == 0)

    def _estimate(self) -> None:
        """One line where there is no GPU, for there training takes long enough to surprise."""
        self.clock.append(time.monotonic())
        if len(self.clock) != ESTIMATE_AFTER or self.fabric.device.type != "cpu":
            return
        each = (self.clock[-1] - self.clock[0]) / (ESTIMATE_AFTER - 1)  # the first step is slower
        left = each * (self.train.steps - self.step)
        if left >= LINE_EVERY_S:
            message(f"about {clock(left)} for the other {self.train.steps - self.step} steps on the CPU")

    def _between_steps(self) -> None:
        last = self.step == self.train.steps
        stop = engine.any_process(self.fabric, self.stop_requested) and not last
        checkpoint_due = self.step % self.train.checkpoint_every == 0
        if checkpoint_due or last:  # also before a stop, else the resumed run would lack this score
            score = self.validation.after(self.method, self.step)
            if score is not None:
                self.metrics.extra(self.step, validation_dice=score)
        if self.job.watch and self.fabric.global_rank == 0:
            self.job.watch(self.method, self.job.plan, self.step)
        if (checkpoint_due or stop) and not last:
            self._save()
        if stop:
            fact = f"stopped after step {self.step} of {self.train.steps}; the state is saved"
            raise Interrupted(fact, None, resume_command(self.job.folder))
        if (
            (self.step % self.train.picture_every == 0 or last)
            and self.job.picture
            and self.fabric.global_rank == 0
        ):
            self.job.picture(self.method, self.memory, self.step)
            self.method.train()

    def _until_next_epoch(self) -> Iterator[Batch]:
        """Batches up to the next step in which an epoch begins; revises the memory first where it is due."""
        cases = len(self.job.cache)
        epoch = self.step * self.batch // cases
        starts_epoch = self.step == 0 or (self.step - 1) * self.batch // cases != epoch
        if starts_epoch and self.memory.version != self.step and self._revision_due(epoch):
            self._revise()
        end = -(-(epoch + 1) * cases // self.batch)
        while end <= self.step:
            end += 1
        steps = range(self.step, min(end, self.train.steps))
        yield from self._batches(steps)

    def _revision_due(self, epoch: int) -> bool:
        # Looking at large volumes costs more than the few patches of an epoch: look more rarely then.
        every = max(1, round(self.job.cache.windows(self.job.plan.patch) / len(self.job.cache)))
        return epoch % every == 0 and self.method.wants_revision(self.step / self.train.steps)

    def _revise(self) -> None:
        torch.manual_seed(_seed(self.train.seed, self.step, self.fabric.global_rank) ^ 0x5EED)
        revise_all(self.fabric, self.method, self.job, self.memory, self.step, self.step / self.train.steps)
        if self.fabric.global_rank == 0:
            self.memory.drop(keep=checkpoint.memories_in_use(self.job.folder))
        self.method.train()

    def _batches(self, steps: range) -> Iterator[Batch]:
        stream = Stream(
            self.job,
            self.memory,
            self.fabric.global_rank,
            self.fabric.world_size,
            trusted=sorted(self.method.trusted_cases),
            trusted_share=self.method.trusted_share,
        )
        for batch, choices in self._drawn(stream, steps):
            yield apply(_to(batch, self.fabric.device), choices)

    def _drawn(self, stream: Stream, steps: range) -> Iterator[Drawn]:
        """Batches of these steps; when a worker process is lost, the rest is drawn in this process."""
        done = 0
        try:
            for drawn in loaded(stream, steps, self.workers):
                yield drawn
                done += 1
        except WorkerLost as fault:
            cases = ", ".join(stream.cases_of(steps[done]))
            message(f"{fault} (before step {steps[done]}, cases {cases}); going on without workers")
            self.workers = 0
            yield from loaded(stream, steps[done:], 0)

    def _save(self) -> None:
        self._refuse_broken_weights()
        self.memory.settle()
        self.fabric.barrier()
        if self.fabric.global_rank == 0:
            self.metrics.flush()
            checkpoint.save(self.job.folder, self._state())
        self.fabric.barrier()

    def _refuse_broken_weights(self) -> None:
        """A good state must never be replaced by a bad one: a step may break weights under a finite loss."""
        sound = all(bool(torch.isfinite(weights).all()) for weights in self.method.parameters())
        if engine.any_process(self.fabric, not sound):
            fact = f"the weights are NaN or infinite after step {self.step}"
            raise DataError(fact, None, "lower train.lr=; the last good state is kept")

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory.version,
            "validation": self.validation.state(),
            "metrics": self.metrics.pending(),
        }

    def _refuse_non_finite(self, what: str, value: float, cases: list[str]) -> None:
        if engine.any_process(self.fabric, not np.isfinite(value)):
            remedy = "lower train.lr=; look at these cases with `maskmend check`; the last good state is kept"
            raise DataError(
                f"the {what} is {value} at step {self.step}, cases {', '.join(sorted(set(cases)))}",
                None,
                remedy,
            )

    def _request_stop(self) -> None:
        self.stop_requested = True


def schedule(progress: float) -> float:
    """Learning rate relative to its peak: a short rise, then a half cosine to 1 % of it."""
    return max(
        0.01,
        ramp(progress, -WARM_UP / 10, WARM_UP) if progress < WARM_UP else 1 - ramp(progress, WARM_UP, 1.0),
    )


def _optimizer(method: Method, lr: float, weight_decay: float) -> AdamW:
    trainable = [p for p in method.parameters() if p.requires_grad]
    return AdamW(trainable, lr=lr, weight_decay=weight_decay, fused=True)


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(1, np.uint64)[0] >> 1)


def _to(batch: Batch, device: torch.device) -> Batch:
    moved = {
        k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()
    }
    return moved  # type: ignore[return-value]


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a stop after the current step; a second Ctrl-C stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        stop()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    if hasattr(signal, "SIGCHLD"):  # `stream.loaded` changes it
        before[signal.SIGCHLD] = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
