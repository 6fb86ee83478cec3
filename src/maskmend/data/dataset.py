"""Find the cases of a data set in any known layout; make splits that keep a patient together."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from maskmend import pseudonyms
from maskmend.data.case import Case, Dataset
from maskmend.data.formats import suffix_of
from maskmend.data.label_values import named_classes
from maskmend.data.layouts import Found, detect, find_folders, find_msd, find_nnunet
from maskmend.data.listing import image_files
from maskmend.data.manifest import find_csv, is_manifest
from maskmend.data.raters import chosen_raters
from maskmend.data.sidefile import DATASET_NAME, SIDE_NAME, SideFile, load_side
from maskmend.errors import DataError, UsageError, shown, unknown

LAYOUTS = ("folders", "nnunet", "msd", "csv")
_LISTED = 10
_EXPECTED = """expected one of
    images/ and labels/ with equal file names (further raters in labels_NAME/)
    imagesTr/ and labelsTr/ with dataset.json (nnU-Net, Decathlon)
    a CSV file with the columns id,image,label"""
_log = logging.getLogger("maskmend")


def find_cases(
    path: Path | str,
    *,
    layout: str | None = None,
    labels: Mapping[str, int] | None = None,
    ignore: int | None = None,
    channels: Sequence[str] | None = None,
    spacing_mm: Sequence[float] | None = None,
    need_labels: bool = True,
    need_images: bool = True,
    rater: str | None = None,
    raters: Sequence[str] | None = None,
) -> Dataset:
    """Find the cases of a data set; file names and JSON are read, no pixels.

    What the arguments say wins over `maskmend.json`, and that over `dataset.json`.

    Args:
        path: the data set's folder or CSV manifest; without `need_labels` also images alone.
        layout: "folders", "nnunet", "msd" or "csv"; None detects it.
        labels: class name to file value. Background is 0 and may be left out.
        ignore: the file value that means "not annotated".
        channels: channel names; their number also says how many files or axes a case has.
        spacing_mm: true voxel size, slowest axis first, where the files' own is wrong.
        need_labels: every training case must have a label; False for prediction.
        need_images: False to compare labels alone; cases then have no images where there are none.
        rater: take this rater's labels as the given ones; cases that the rater left out are dropped.
        raters: learn from several raters, see `with_raters`.

    Raises:
        UsageError: nothing there, no layout fits, or labels that cannot be (see `named_classes`).
        DataError: images without labels or the reverse, a missing channel, ids equal but for letter case.
    """
    path = Path(path)
    if names := pseudonyms.active():
        names.know_place(path)
    root, kind = _located(path, layout, need_labels)
    folder = root if root.is_dir() else root.parent
    side = load_side(folder)
    channels = tuple(channels or side.channels or ())
    found = _searched(root, kind, len(channels) or None, overridden=bool(labels or side.labels))
    if not found.cases:
        raise _nothing(path, "holds no cases")
    cases = _completed(found.cases, side, root)
    _check_ids(cases, root)
    if rater and raters:
        raise UsageError("one rater and several were asked for", "data.rater, data.raters", "leave one out")
    cases = _of_raters(cases, raters, root) if raters else _of_rater(cases, rater, root, need_labels)
    _check_pairs(cases, found.orphans, root, need_labels, need_images)
    source = "data.labels" if labels else folder / (SIDE_NAME if side.labels else DATASET_NAME)
    values, unlabelled = named_classes(labels or side.labels or found.labels, source)
    return Dataset(
        root,
        kind,
        tuple(sorted(hidden(cases), key=lambda case: case.id)),
        values,
        channels or found.channels,
        next((v for v in (ignore, unlabelled, side.ignore, found.ignore) if v is not None), None),
        tuple(spacing_mm or side.spacing_mm or ()) or None,
    )


def hidden(cases: Iterable[Case]) -> list[Case]:
    """The cases under their pseudonyms while such are in use; the paths of their files stay what they are."""
    names = pseudonyms.active()
    if names is None:
        return list(cases)
    cases = list(cases)
    names.know(case.id for case in cases)
    names.know_files(file for case in cases for file in case.files)
    renamed = [
        replace(
            case,
            id=names.of("case", case.id),
            group=case.group and names.of("patient", case.group),
            site=case.site and names.of("site", case.site),
        )
        for case in cases
    ]
    names.save()
    return renamed


def _located(path: Path, layout: str | None, need_labels: bool) -> tuple[Path, str]:
    """The absolute root and its layout."""
    if layout is not None and layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS, "data.layout")
    root = path.expanduser().resolve()
    if not os.path.exists(root):
        raise _nothing(path, "does not exist")
    if root.is_file() and root.name in (DATASET_NAME, SIDE_NAME):
        root = root.parent
    if root.is_file():
        return _located_file(path, root, need_labels)
    if layout == "csv" or (layout is None and detect(root, need_labels) is None):
        manifests = [file for file in sorted(root.glob("*.csv")) if is_manifest(file)]
        if len(manifests) == 1:
            return manifests[0], "csv"
    kind = layout or detect(root, need_labels)
    if kind is None:
        raise _nothing(path, "is empty" if not any(root.iterdir()) else "holds no data set")
    return root, kind


def _located_file(path: Path, root: Path, need_labels: bool) -> tuple[Path, str]:
    if root.suffix.lower() in (".csv", ".tsv"):
        return root, "csv"
    if suffix_of(root) and not need_labels:
        return root, "folders"
    raise _nothing(path, "is one file, not a data set")


def _nothing(path: Path, fact: str) -> UsageError:
    """Row 1: the path as given and absolute, what is expected, and the data set that may have been meant."""
    root, remedy = path.expanduser().resolve(), _EXPECTED
    near = [root.parent, *(sorted(p for p in root.iterdir() if p.is_dir())[:50] if root.is_dir() else [])]
    meant = [p for p in near if p.is_dir() and not p.name.startswith(".") and _holds_pairs(p)]
    if meant:
        remedy += f"\n  did you mean {meant[0]}?"
    return UsageError(f"{fact} ({root})", path, remedy)


def _holds_pairs(root: Path) -> bool:
    return any(
        (root / a).is_dir() and (root / b).is_dir()
        for a, b in (("images", "labels"), ("imagesTr", "labelsTr"))
    )


def _searched(root: Path, kind: str, channels: int | None, *, overridden: bool) -> Found:
    if root.is_file() and kind == "folders":
        stem, file = next((s, f) for s, f in image_files(root.parent).items() if f.name == root.name)
        return Found((Case(stem, (file,)),))
    if kind == "csv":
        if root.is_dir():
            raise UsageError("holds no CSV file with an image column", root, _EXPECTED)
        return find_csv(root)
    finder = {"folders": find_folders, "nnunet": find_nnunet, "msd": find_msd}[kind]
    return finder(root, channels, overridden=overridden)


def _completed(cases: Iterable[Case], side: SideFile, root: Path) -> list[Case]:
    """Cases with what the side file adds."""
    folder = root if root.is_dir() else root.parent
    cases = list(cases)
    known = {case.id for case in cases}
    for key in ("trusted", "groups", "ignore_masks", "test", "sites", "drawn_by"):
        for name in getattr(side, key):
            if name not in known:
                raise unknown(f"case in {key!r}", name, known, folder / SIDE_NAME)
    raters = {}
    for name, place in side.raters.items():
        _refuse_outside(place, folder)
        if not os.path.isdir(folder / place):
            raise DataError(f"the folder {place} of the rater {name!r} does not exist", folder / SIDE_NAME)
        raters[name] = image_files(folder / place)
    return [_with_side(case, side, raters, folder) for case in cases]


def _refuse_outside(name: str, folder: Path) -> None:
    """A downloaded side file may not point anywhere else, as in the Decathlon's lists."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"lists a file outside the data set: {name}", folder / SIDE_NAME)


def _with_side(case: Case, side: SideFile, raters: Mapping[str, Mapping[str, Path]], folder: Path) -> Case:
    mask = side.ignore_masks.get(case.id)
    if mask:
        _refuse_outside(mask, folder)
    if mask and not os.path.isfile(folder / mask):
        raise DataError(f"the ignore mask {mask} of {case.id} does not exist", folder / SIDE_NAME)
    return replace(
        case,
        raters={
            **case.raters,
            **{name: files[case.id] for name, files in raters.items() if case.id in files},
        },
        trusted=case.trusted or case.id in side.trusted,
        group=side.groups.get(case.id, case.group),
        split="test" if case.id in side.test else case.split,
        ignore=folder / mask if mask else case.ignore,
        site=side.sites.get(case.id, case.site),
        rater=side.drawn_by.get(case.id, case.rater),
    )


def _check_ids(cases: Sequence[Case], root: Path) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        if not _safe(case.id):
            raise DataError(f"the case id {case.id!r} cannot be a file name", root)
        other = seen.setdefault(case.id.casefold(), case)
        if other is case:
            continue
        if other.id != case.id:
            fact = f"the ids {other.id} and {case.id} differ only by letter case"
            raise DataError(fact, root, "rename one: Windows and macOS cannot tell their files apart")
        if other.split != case.split:
            raise DataError(f"leak: the case {case.id} is both in train and test", root, "remove one of them")
        raise DataError(f"the id {case.id} occurs twice", root, "give each case its own id")


def _safe(name: str) -> bool:
    """Ids become file names of results: nothing that leaves the folder or that a system forbids."""
    return name not in ("", ".", "..") and not any(c in "/\\:\0" or ord(c) < 32 for c in name)


def _of_rater(cases: Sequence[Case], rater: str | None, root: Path, need_labels: bool) -> list[Case]:
    raters = sorted({name for case in cases for name in case.raters})
    if rater is not None:
        if rater not in raters:
            raise unknown("rater", rater, raters, root)
        return [_relabelled(case, rater) for case in cases if rater in case.raters or case.split == "test"]
    if need_labels and raters and not any(case.label for case in cases):
        listed = ", ".join(raters)
        raise UsageError(
            "has labels by rater only",
            root,
            f"choose whose to learn from: data.rater= one of {listed}; or a method that learns from several raters",
        )
    return list(cases)


def _relabelled(case: Case, rater: str) -> Case:
    """The rater's label in training; test cases are scored against their own label where they have one."""
    if case.split == "test" and case.label is not None:
        return case
    return replace(case, label=case.raters.get(rater), rater=rater)


def with_raters(dataset: Dataset, wanted: Sequence[str]) -> Dataset:
    """The data set as several raters drew it.

    Training cases keep the masks of the chosen raters; cases that none of them drew are dropped. The given label
    is for testing then and does not take part, except where a case is trusted: elsewhere the first rater's mask
    stands in its place, where one label suffices (statistics of the data). Test cases keep their label.

    Args:
        dataset: as found.
        wanted: rater names, or patterns such as `rater*`.

    Raises:
        UsageError: an unknown name, or fewer than two raters.
    """
    return replace(dataset, cases=tuple(_of_raters(dataset.cases, wanted, dataset.root)))


def _of_raters(cases: Sequence[Case], wanted: Sequence[str], root: Path) -> list[Case]:
    known = sorted({name for case in cases if case.split == "train" for name in case.raters})
    names = chosen_raters(known, wanted, root)
    kept = [
        replace(case, raters={name: case.raters[name] for name in names if name in case.raters})
        for case in cases
    ]
    own = {case.id for case in kept if case.split == "test" or (case.trusted and case.label)}
    undrawn = [case.id for case in kept if not case.raters and case.id not in own]
    if undrawn:
        _log.warning("%s", shown(f"{root}: left out, drawn by none of the raters: {_first(undrawn)}"))
    drawn = [case for case in kept if case.raters or case.id in own]
    return [case if case.id in own else _relabelled(case, min(case.raters)) for case in drawn]


def _check_pairs(
    cases: Sequence[Case], orphans: Sequence[str], root: Path, need_labels: bool, need_images: bool
) -> None:
    """Row 2: each training image needs its label and each label its image."""
    blind = [case.id for case in cases if not case.images]
    if blind and need_images:
        raise DataError(
            f"{len(blind)} labels without an image: {_first(blind)}", root, "images/ is missing or empty"
        )
    unlabelled = [case.id for case in cases if case.label is None and case.split == "train"]
    facts = []
    if unlabelled and need_labels:
        facts.append(f"{len(unlabelled)} images without a label: {_first(unlabelled)}")
    if orphans:
        facts.append(f"{len(orphans)} labels without an image: {_first([Path(o).name for o in orphans])}")
    if not facts:
        return
    if need_labels:
        hint = "image and label have the same name (but for a channel number _0000); remove or complete them"
        raise DataError("; ".join(facts), root, hint)
    _log.warning("%s", shown(f"{root}: {'; '.join(facts)}"))


def _first(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def infer_labels(dataset: Dataset, *, limit: int | None = None) -> Dataset:
    """The data set with its classes named, read from the label files when nobody declared them.

    Args:
        limit: look at this many labelled cases only, spread over the set.

    Raises:
        DataError: values that cannot be taken for classes without asking: 0/255, interpolated, negative.
    """
    from maskmend.data.images import read_label
    from maskmend.data.label_values import count_values, infer_classes, judge_undeclared, judge_values

    if dataset.labels:
        return dataset
    labelled = [case for case in dataset.cases if case.label]
    step = max(1, len(labelled) // limit) if limit else 1
    counts = []
    for case in labelled[::step][:limit]:
        assert case.label is not None
        counts.append(count_values(read_label(case.label, spacing_mm=dataset.spacing_mm)[0]))
        if finding := judge_values(counts[-1], {}, dataset.ignore):
            raise DataError(finding.text, case.label, finding.remedy)
    if finding := judge_undeclared(counts, dataset.ignore):
        raise DataError(finding.text, dataset.root, finding.remedy)
    return replace(dataset, labels=infer_classes(counts, dataset.ignore))


def split(
    cases: Dataset | Iterable[Case], fraction: float, seed: int = 0
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Part cases in two by patient; a pure function of the ids, groups and seed.

    Args:
        cases: a data set (its training cases) or cases.
        fraction: the share of the second part, in [0, 1]; groups are never torn, so it is met approximately.
        seed: another seed, another split.

    Returns:
        The larger part and the rest, each sorted by id. Neither is empty when there are two groups and
        0 < fraction < 1.
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"the fraction {fraction} is not in [0, 1]")
    groups = _groups(cases, seed)
    total = sum(map(len, groups))
    rest: list[Case] = []
    for group in groups[: len(groups) - (fraction < 1)]:
        if len(rest) + len(group) / 2 > fraction * total and (rest or not fraction):
            break
        rest += group
    chosen = {case.id for case in rest}
    return _by_id(c for g in groups for c in g if c.id not in chosen), _by_id(rest)


def folds(
    cases: Dataset | Iterable[Case], k: int = 5, seed: int = 0
) -> list[tuple[tuple[Case, ...], tuple[Case, ...]]]:
    """Part cases into k cross-validation folds by patient, as (training, validation) pairs of equal size.

    Raises:
        UsageError: fewer than two folds, or fewer groups than folds.
    """
    groups = _groups(cases, seed)
    if not 2 <= k <= len(groups):
        raise UsageError(f"{k} folds of {len(groups)} patients or cases", None, f"2 to {len(groups)} folds")
    parts: list[list[Case]] = [[] for _ in range(k)]
    for group in sorted(groups, key=len, reverse=True):  # stable: equal sizes stay in their shuffled order
        min(parts, key=len).extend(group)
    return [
        (_by_id(c for other in parts if other is not part for c in other), _by_id(part)) for part in parts
    ]


def _groups(cases: Dataset | Iterable[Case], seed: int) -> list[list[Case]]:
    """Cases by patient, in an order drawn by hash: a case added later does not reshuffle the others."""
    found: dict[tuple[str, str], list[Case]] = {}
    for case in sorted(cases.train if isinstance(cases, Dataset) else cases, key=lambda c: c.id):
        key = ("case", case.id) if case.group is None else ("group", case.group)
        found.setdefault(key, []).append(case)
    return [
        found[key] for key in sorted(found, key=lambda k: hashlib.sha256(repr((seed, k)).encode()).digest())
    ]


def _by_id(cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple(sorted(cases, key=lambda case: case.id))
