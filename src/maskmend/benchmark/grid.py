"""From a benchmark file to its runs. A run's key stands for everything that decides its outcome."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskmend import pseudonyms
from maskmend.benchmark.settings import Benchmark, Data, extra_needs, merged, overrides_of
from maskmend.config_text import put
from maskmend.data.digests import fed
from maskmend.errors import UsageError, unknown

FORMAT = 1  # raise it when equal recipes no longer mean equal runs
CLEAN = "clean"


@dataclass(frozen=True)
class Trial:
    """One run of the grid.

    Args:
        data, noise, rate, method, seed: where it stands in the grid; noise is "clean" at rate 0 for true masks.
        recipe: everything that decides its outcome, ready for JSON; names and paths are not part of it.
        source: folder of the data set, "" for phantoms.
        extras: what is measured beside the outcome and how it is computed; changes no result.
    """

    data: str
    noise: str
    rate: float
    method: str
    seed: int
    recipe: Mapping[str, Any]
    source: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name of its result; equal recipes have equal keys on every machine."""
        text = json.dumps(self.recipe, sort_keys=True, separators=(",", ":"), default=list)
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()

    @property
    def title(self) -> str:
        """For messages."""
        flaws = CLEAN if self.noise == CLEAN else f"{self.noise} {self.rate:.0%}"
        return f"{self.data}, {flaws}, {self.method}, seed {self.seed}"

    @property
    def place(self) -> dict[str, Any]:
        """Its columns in tables."""
        names = ("data", "noise", "rate", "method", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Grid:
    """All runs of a benchmark, and the combinations that were left out with the reason."""

    trials: tuple[Trial, ...]
    skipped: tuple[str, ...] = ()


def build(plan: Benchmark, root: Path) -> Grid:
    """Expand a benchmark file.

    Seeds vary slowest, so that a benchmark stopped half-way holds whole seeds of everything.

    Args:
        plan: the file.
        root: the folder below which the data sets lie.

    Raises:
        UsageError: data sets or raters that are not there. DataError: a file that cannot be read.
    """
    folders = {name: _folder(data, root) for name, data in plan.data.items()}
    _require(folders)
    sources = {name: _source(data, folders[name]) for name, data in plan.data.items()}
    trials: list[Trial] = []
    skipped: dict[str, None] = {}
    for seed in plan.seeds:
        for name in plan.data:
            for noise, rate, recipe in _noises(plan, name, sources[name]):
                for label in plan.methods:
                    if reason := _unfit(plan, name, label, recipe):
                        if noise != CLEAN:
                            skipped[f"{label} on {name}, {noise}: {reason}"] = None
                    elif noise != CLEAN or plan.clean == "all" or label == plan.baseline:
                        trials.append(_trial(plan, sources[name], (name, noise, rate, label, seed), recipe))
    return Grid(tuple(trials), tuple(skipped))


@dataclass(frozen=True)
class _Source:
    folder: str
    fingerprint: Any
    raters: tuple[str, ...] = ()


def _folder(data: Data, root: Path) -> Path | None:
    """Where a data set lies; None for phantoms."""
    if data.path is None:
        return None
    path = Path(data.path).expanduser()
    return path if path.is_absolute() else root / path


def _require(folders: Mapping[str, Path | None]) -> None:
    missing = {name: path for name, path in folders.items() if path is not None and not path.exists()}
    if not missing:
        return
    name, path = next(iter(missing.items()))
    remedy = (
        f"say where data sets lie with --data, or leave one out: data.{name}=null"
        "\n  docs/benchmark.md tells how to get the data of the presets"
    )
    if len(missing) == 1:
        raise UsageError(f"the data set {name!r} is not there", path, remedy)
    raise UsageError(f"the data sets {', '.join(missing)} are not there", f"{path} and others", remedy)


def _source(data: Data, folder: Path | None) -> _Source:
    if folder is None:
        assert data.phantom is not None  # one of the two is always given
        names = pseudonyms.active()  # cases are divided by their ids, so other ids are other runs
        mark = {"names": names.of("data", "phantoms")} if names else {}
        return _Source("", {"phantom": data.phantom.model_dump(mode="json"), **mark})
    from maskmend.benchmark.cases import open_dataset

    place = str(folder.resolve())
    raters = sorted({rater for case in open_dataset(place).cases for rater in case.raters})
    return _Source(place, fingerprint(place), tuple(raters))


def trusted_share(plan: Benchmark, data: str) -> float:
    """Share of a data set's training cases whose masks are true and known to be."""
    own = plan.data[data].trusted
    return plan.trusted if own is None else own


def fingerprint(folder: str) -> str:
    """Hash of the contents of all files of all cases, of the class values and the marked test cases."""
    from maskmend.benchmark.cases import open_dataset

    dataset, digest = open_dataset(folder), hashlib.blake2b(digest_size=16)
    facts = [sorted(dataset.labels.items()), dataset.ignore, dataset.spacing_mm]
    digest.update(json.dumps(facts).encode())
    for case in dataset.cases:
        raters = [case.raters[name] for name in sorted(case.raters)]
        digest.update(json.dumps([case.id, case.split, case.group, sorted(case.raters)]).encode())
        for path in (*case.images, case.label, case.ignore, *raters):
            for file in _files(path):
                digest.update(fed(hashlib.sha256(), file).digest())
    return digest.hexdigest()


def _files(path: Path | None) -> list[Path]:
    if path is None:
        return []
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


def _noises(plan: Benchmark, name: str, source: _Source) -> list[tuple[str, float, dict[str, Any] | None]]:
    """Every condition of a data set: name, rate, and what is done to the masks (None: nothing)."""
    own = plan.data[name].noise
    rows: list[tuple[str, float, dict[str, Any] | None]] = []
    if plan.clean != "none":
        rows.append((CLEAN, 0.0, None))
    for label in plan.noise if own is None else own:
        noise = merged(plan.noise[label], (own or {}).get(label))
        if noise.raters is not None:
            if own is None and not source.raters:
                continue  # asked for in general, not for this data set
            rows.append((label, 1.0, {"raters": _chosen(noise.raters, source.raters, f"noise.{label}")}))
            continue
        for rate in noise.rates or plan.rates:
            rows.append((label, rate, {"kind": noise.kind, "rate": rate, **noise.parameters}))
    return rows


def _chosen(patterns: Sequence[str], known: Sequence[str], where: str) -> list[str]:
    found = []
    for pattern in patterns:
        hits = fnmatch.filter(known, pattern)
        if not hits:
            raise unknown("rater", pattern, known, where)
        found += hits
    return sorted(set(found))


def _unfit(plan: Benchmark, data: str, label: str, recipe: Mapping[str, Any] | None) -> str | None:
    """Why a method cannot run here, None when it can."""
    needs = extra_needs(plan.methods[label].name)
    if "trusted" in needs and not trusted_share(plan, data):
        return "needs trusted cases; give a share of them as trusted: 0.1"
    if "raters" in needs and not (recipe and "raters" in recipe):
        return "needs several raters per image"
    return None


def _trial(
    plan: Benchmark, source: _Source, place: tuple[str, str, float, str, int], noise: dict[str, Any] | None
) -> Trial:
    name, _, rate, label, seed = place
    data, entry = plan.data[name], plan.methods[label]
    recipe = {
        "format": FORMAT,
        "data": source.fingerprint,
        "train": data.train,
        "test": data.test,
        "trusted": trusted_share(plan, name),
        "noise": noise,
        "method": _method(entry.name) | {"settings": _with_rate(entry.settings, rate)},
        "settings": _plain_settings(overrides_of(plan, name)),
        "seed": seed,
    }
    extras = {
        "curve_points": plan.curve_points,
        "curve_cases": plan.curve_cases,
        "threads": plan.threads,
        "method": str(Path(entry.name).resolve()) if entry.name.endswith(".py") else entry.name,
        "settings": {k: v for k, v in overrides_of(plan, name).items() if k.startswith(_UNDECIDING)},
    }
    if names := pseudonyms.active():
        extras["names"] = str(names.file.resolve())
    return Trial(*place, recipe, source.folder, extras)


def _with_rate(settings: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """A setting given as the text `rate` gets the true noise rate, for methods that must know it."""
    return {key: rate if value == "rate" else value for key, value in settings.items()}


def _method(name: str) -> dict[str, Any]:
    """A method of the user's own is known by the content of its file."""
    if not name.endswith(".py"):
        return {"name": name}
    path = Path(name).resolve()
    return {"file": hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()}


_UNDECIDING = (
    "device", "train.threads", "train.workers", "train.checkpoint_every", "train.picture_every", "train.tensorboard",
    "predict.batch", "evaluate.", "data.max_voxels",
)  # fmt: skip


def _plain_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the configuration understands them: 1 and 1.0 for a float are the same run."""
    from maskmend import config

    tree: dict[str, Any] = {}
    for key, value in given.items():
        put(tree, key, value)
    whole: Any = config.validate(tree).model_dump(mode="json")
    plain = {}
    for key in given:
        value = whole
        for part in key.split("."):
            value = value[part]
        if not key.startswith(_UNDECIDING):
            plain[key] = value
    return plain
