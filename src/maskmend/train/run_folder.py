"""A run folder opened again: its settings, its plan and the trained method."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from maskmend import methods, networks
from maskmend.config import Config, load
from maskmend.data.digests import fed
from maskmend.data.fingerprint import Fingerprint
from maskmend.data.plan import Plan
from maskmend.data.sidefile import load_json
from maskmend.errors import UsageError
from maskmend.methods.base import Method

FORMAT = "maskmend 1"
MODEL, PLAN, CONFIG, FACTS, FINGERPRINT = (
    "model.safetensors",
    "plan.json",
    "config.yaml",
    "run.json",
    "fingerprint.json",
)
Model = TypeVar("Model", bound=BaseModel)


def resume_command(folder: Path) -> str:
    """The command that continues a run; "..." stands for its data set."""
    return f"maskmend train ... -o {shlex.quote(str(folder))} --resume"


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run folder."""

    folder: Path
    config: Config
    plan: Plan
    facts: dict[str, Any]
    trust_code: bool = False

    @classmethod
    def open(cls, folder: Path | str, *, trust_code: bool = False) -> Run:
        """Read a run folder. No code is executed yet.

        Args:
            folder: as `maskmend train` left it.
            trust_code: let `method` import what the run's settings name beside maskmend's own methods and networks.

        Raises:
            UsageError: not a run folder, no model in it yet, or one from a newer maskmend.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file() or not (folder / PLAN).is_file():
            raise UsageError(
                "not a run folder (no config.yaml and plan.json)", folder, "give the -o of `maskmend train`"
            )
        facts = load_json(folder / FACTS) if (folder / FACTS).is_file() else {}
        if facts.get("format") != FORMAT:
            raise UsageError(
                f"has format {facts.get('format')!r}, this is {FORMAT!r}", folder, "update maskmend"
            )
        return cls(folder, load(folder / CONFIG, []), stored(Plan, folder / PLAN), facts, trust_code)

    @property
    def labels(self) -> dict[str, int]:
        """Class name to file value, in class order."""
        return self.plan.classes

    @property
    def fingerprint(self) -> Fingerprint:
        """What the training data looked like."""
        return stored(Fingerprint, self.folder / FINGERPRINT)

    def digest(self) -> str:
        """Of the trained model's file: another training, or more of it, has another."""
        return fed(hashlib.sha256(), self.folder / MODEL).hexdigest()

    def method(self) -> Method:
        """The trained method, in evaluation mode on the CPU. Only safetensors are read, never a pickle.

        Raises:
            UsageError: no model, not safetensors, one that does not fit, or a run of foreign code that nobody vouched
                for with `trust_code`.
        """
        path = self.folder / MODEL
        foreign = [name for name in (self.config.method.name, self.config.network.name) if _is_foreign(name)]
        if foreign and not self.trust_code:
            fact = f"would execute code that is not maskmend's: {', '.join(foreign)}"
            raise UsageError(fact, self.folder / CONFIG, "where you know that code, add --trust-code")
        if not path.is_file():
            raise UsageError(
                "holds no model yet", self.folder, f"finish it with `{resume_command(self.folder)}`"
            )
        try:
            weights = load_file(path)
            with safe_open(path, framework="pt") as file:
                kind = json.loads((file.metadata() or {}).get("maskmend", "{}")).get("format")
        except (SafetensorError, OSError) as fault:
            raise UsageError(f"not a safetensors file ({fault}); nothing else is read", path) from fault
        if kind != FORMAT:
            raise UsageError(
                f"is a model of another program or version ({kind!r})", path, "safetensors of maskmend only"
            )
        method = build_method(self.config, self.plan)
        try:
            method.load_state_dict(weights)
        except RuntimeError as fault:
            fact = f"does not fit {PLAN} and {CONFIG}: {str(fault).splitlines()[-1].strip()[:200]}"
            raise UsageError(fact, path, "copy the whole run folder from its source") from fault
        return method.eval()


def build_method(config: Config, plan: Plan) -> Method:
    """The method with networks of the plan's shape, freshly initialised from the current torch seed."""
    make_network = partial(
        networks.build,
        config.network.name,
        ndim=plan.ndim,
        in_channels=plan.in_channels,
        classes=plan.num_classes,
        patch=plan.patch,
        depth=plan.depth,
        options=config.network.options,
    )
    given = method_settings(config)
    make_method: Callable[..., Method] = methods.load(config.method.name)
    try:
        return make_method(make_network, **given)
    except TypeError as fault:
        raise UsageError(str(fault), "method", f"given: {given}") from fault


def method_settings(config: Config) -> dict[str, Any]:
    """The `method.*` keys other than its name."""
    return dict(config.method.model_extra or {})


def _is_foreign(name: str) -> bool:
    """Whether a method or network is a file or package of somebody else's: a run from elsewhere may name any."""
    return name.endswith(".py") or ":" in name


def stored(kind: type[Model], path: Path) -> Model:
    """What a run folder says about itself in JSON."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as fault:  # a ValidationError is a ValueError
        lines = [line.strip() for line in str(fault).splitlines()[:3]]
        raise UsageError(
            f"is damaged: {'; '.join(lines)}", path, "copy the run again from its source"
        ) from fault
