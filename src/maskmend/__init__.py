"""Learn medical image segmentation from flawed masks, and find and mend the flaws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskmend import methods
    from maskmend.audit.run import audit
    from maskmend.audit.screen import screen
    from maskmend.benchmark.run import benchmark
    from maskmend.config import Config
    from maskmend.config import load as load_config
    from maskmend.data.case import Case, Dataset
    from maskmend.data.check import check
    from maskmend.data.dataset import find_cases
    from maskmend.data.images import read_image, read_label, write_label
    from maskmend.demo import demo
    from maskmend.errors import UserError
    from maskmend.evaluate.table import evaluate
    from maskmend.methods.base import Method
    from maskmend.predict.run import predict
    from maskmend.train.run import train
    from maskmend.train.run_folder import Run

__all__ = [
    "Case",
    "Config",
    "Dataset",
    "Method",
    "Run",
    "UserError",
    "audit",
    "benchmark",
    "check",
    "demo",
    "evaluate",
    "find_cases",
    "load_config",
    "methods",
    "predict",
    "read_image",
    "read_label",
    "screen",
    "train",
    "write_label",
]

# Where each public name lives. Imported on first use: torch alone takes seconds to load.
_HOMES = {
    "Case": "data.case",
    "Config": "config",
    "Dataset": "data.case",
    "Method": "methods.base",
    "Run": "train.run_folder",
    "UserError": "errors",
    "check": "data.check",
    "find_cases": "data.dataset",
    "load_config": "config",
    "read_image": "data.images",
    "read_label": "data.images",
    "screen": "audit.screen",
    "write_label": "data.images",
}
_MODULES = (
    "audit",
    "benchmark",
    "demo",
    "evaluate",
    "methods",
    "predict",
    "train",
)  # callable, but for methods


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"maskmend.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'maskmend' has no attribute {name!r}")
    value = getattr(import_module(f"maskmend.{_HOMES[name]}"), {"load_config": "load"}.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
