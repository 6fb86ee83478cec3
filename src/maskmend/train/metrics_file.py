"""`metrics.jsonl`: one line per ten steps, the same bytes whether or not the run was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from maskmend.data.atomic import write_text

NAME = "metrics.jsonl"


class MetricsFile:
    """Means over the steps since the last line. No clock times: those would differ between equal runs.

    Args:
        folder: the run folder.
        step: the step that training starts from; lines after it (from before a kill) are dropped.
        enabled: False on all processes but the first.
        tensorboard: also write TensorBoard events (an extra).
    """

    def __init__(self, folder: Path, step: int, *, enabled: bool, tensorboard: bool = False) -> None:
        self.path, self.enabled = folder / NAME, enabled
        self.latest: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._count = 0
        self._board = _board(folder) if tensorboard and enabled else None
        self._lines = [line for line in _read(self.path) if line["step"] <= step] if enabled else []

    def add(self, step: int, loss: float, logs: dict[str, Tensor | float], *, write: bool) -> None:
        """Take in one step; `write` ends the line."""
        self._sums["loss"] = self._sums.get("loss", 0.0) + loss
        for key, value in logs.items():
            self._sums[key] = self._sums.get(key, 0.0) + float(value)
        self._count += 1
        if write:
            self.latest = {key: value / self._count for key, value in self._sums.items()}
            self._line({"step": step, **{k: float(f"{v:.6g}") for k, v in self.latest.items()}})
            self._sums, self._count = {}, 0

    def extra(self, step: int, **figures: float) -> None:
        """A line of its own for something measured rarely."""
        self._line({"step": step, **{k: float(f"{v:.6g}") for k, v in figures.items()}})

    def flush(self) -> None:
        """Write all lines (atomically: a reader never sees half a line)."""
        if self.enabled:
            text = "".join(json.dumps(line) + "\n" for line in self._lines)
            write_text(self.path, text)

    def close(self) -> None:
        """Flush, and close TensorBoard."""
        self.flush()
        if self._board:
            self._board.close()

    def pending(self) -> dict[str, Any]:
        """The unfinished line, to be stored with the training state."""
        return {"sums": self._sums, "count": self._count}

    def restore(self, pending: dict[str, Any] | None) -> None:
        """Continue an unfinished line."""
        if pending:
            self._sums, self._count = dict(pending["sums"]), pending["count"]

    def _line(self, line: dict[str, Any]) -> None:
        if not self.enabled:
            return
        self._lines.append(line)
        if self._board:
            for key, value in line.items():
                if key != "step":
                    self._board.add_scalar(key, value, line["step"])


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics."""
    return _read(folder / NAME)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def _board(folder: Path) -> Any:
    from maskmend.errors import UsageError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as fault:
        raise UsageError(
            "TensorBoard is not installed", "train.tensorboard", "pip install maskmend[tensorboard]"
        ) from fault
    return SummaryWriter(str(folder / "tensorboard"))
