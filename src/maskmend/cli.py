"""The command line: one function per verb. Nothing heavy is imported before a verb is chosen.

stdout is data, stderr is messages. Exit codes: 0 ok, 1 our bug, 2 usage or configuration, 3 data,
4 resources, 130 interrupted and resumable.
"""

from __future__ import annotations

import atexit
import gc
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskmend.answers import json_text, print_json, print_rich
from maskmend.ending import ended
from maskmend.errors import UsageError
from maskmend.progress import counter, message
from maskmend.pseudonyms import start

if TYPE_CHECKING:
    from maskmend.config import Config

app = typer.Typer(
    help="Learn medical image segmentation from flawed masks, and find and mend the flaws.",
    epilog="key=value sets any configuration key, e.g. train.steps=500; all: docs/reference/config.md",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Option("--output", "-o", help="Where results go.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="Settings; the last one wins.")
]
File = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on stdout.")]
PhiSafe = Annotated[
    Path | None,
    typer.Option(
        "--phi-safe",
        metavar="NAMES",
        help="Show hashes for ids, patients, sites and paths; NAMES keeps the key.",
    ),
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Execute a method or network that the run brings along.")
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes", min=1, help="Cases at the same time; as cores and memory allow.", show_default=False
    ),
]
_GO_ON = {
    "train": "the same command goes on with --resume",
    **dict.fromkeys(("predict", "audit", "benchmark"), "the same command goes on"),
}
"""After a stop; every other verb begins anew."""
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output holds.")]


@app.command()
def demo(
    out: Out = Path("demo"),
    ndim: Annotated[int, typer.Option(min=2, max=3, help="2 for images, 3 for volumes.")] = 2,
    seeds: Annotated[
        int, typer.Option(min=1, max=50, help="Repetitions; from 5 on, intervals mean something.")
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each training; fewer is faster, worse.")
    ] = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Flaw a synthetic data set, train on it plainly and robustly, and report the difference."""
    from maskmend.demo import demo as run_demo

    answer = run_demo(out, ndim=ndim, seeds=seeds, steps=steps, overwrite=overwrite)
    print_json(answer) if as_json else print(answer["report"])


@app.command()
def check(
    dataset: Annotated[Path, typer.Argument(help="Data set folder or CSV manifest.")],
    settings: Settings = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="OUT", help="Write a mended copy here.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="PNG", help="Draw cases with contours.")
    ] = None,
    config: File = None,
    phi_safe: PhiSafe = None,
    as_json: Json = False,
) -> None:
    """Look at every file of a data set: all faults with their remedies, and what the data holds."""
    from maskmend.data import check as checking

    if phi_safe and fix:
        raise UsageError("a mended copy keeps the names of its files", "--fix, --phi-safe", "leave one out")
    _hide_names(phi_safe, None)
    options = _load(config, settings, "data")
    with counter("checking") as progress:
        result = checking.check(dataset, data=options.data, progress=progress)
    mended = checking.fix(result, fix) if fix else None
    if sheet and result.sheet(sheet):
        message(f"drew {sheet}")
    if as_json:
        print_json(result.to_json() | ({"fix": mended} if mended is not None else {}))
    else:
        print_rich(result.table())
    if fix:
        message(f"wrote {fix}; what was done is in {fix / 'fixes.json'}")
    raise typer.Exit(result.exit_code)


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="Data set folder or CSV manifest.")],
    out: Out,
    settings: Settings = None,
    config: File = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue where the run stopped.")] = False,
    phi_safe: PhiSafe = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn a segmentation model from images and (flawed) masks."""
    from maskmend.config import dump

    _hide_names(phi_safe, out)
    stored = out / "config.yaml"
    options = _load(stored if resume and config is None and stored.is_file() else config, settings)
    message(dump(options).rstrip())
    from maskmend.train.run import train as run_train

    run = run_train(dataset, out, options, resume=resume, overwrite=overwrite)
    from maskmend.report import run_report

    message(f"report: {run_report(run.folder)}")
    message(f"next: maskmend predict {shlex.quote(str(out))} IMAGES -o PREDICTIONS")
    if as_json:
        print_json({"run": str(run.folder), "labels": run.labels, **run.facts})
    else:
        print(run.folder)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of `maskmend train`.")],
    images: Annotated[Path, typer.Argument(metavar="INPUT", help="Image, folder of images, or data set.")],
    out: Out,
    settings: Settings = None,
    save: Annotated[str | None, typer.Option("--save", help="Any of labels,probs,uncertainty.")] = None,
    config: File = None,
    trust_code: TrustCode = False,
    phi_safe: PhiSafe = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Segment images with a trained model, on their own grid and in their own format."""
    _hide_names(phi_safe, out)
    stored = run / "config.yaml"
    given = [*(settings or []), *([f"predict.save=[{save}]"] if save else [])]
    options = _load(
        config or (stored if stored.is_file() else None), given, "predict", "device", "data.max_voxels"
    )
    from maskmend.predict.run import predict as run_predict

    with counter("predicting") as progress:
        how: dict[str, Any] = {"overwrite": overwrite, "trust_code": trust_code, "progress": progress}
        files = run_predict(run, images, out, config=options, **how)
    print_json([str(file) for file in files]) if as_json else print(*files, sep="\n")


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PRED", help="Folder of predicted labels.")],
    references: Annotated[Path, typer.Argument(metavar="REF", help="Folder of true labels, or a data set.")],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Write the table here as JSON.")] = None,
    config: File = None,
    phi_safe: PhiSafe = None,
    as_json: Json = False,
) -> None:
    """Score predictions against references: per case and class, with intervals."""
    _hide_names(phi_safe, None)
    options = _load(config, settings, "evaluate", "data")
    from maskmend.evaluate.table import evaluate as run_evaluate

    with counter("scoring") as progress:
        result = run_evaluate(predictions, references, config=options, progress=progress)
    if out:
        from maskmend.data.atomic import write_text

        write_text(out, json_text(result.to_json()))
    if as_json:
        print_json(result.to_json())
    else:
        print_rich(result.to_table(), narrow=result.to_list())


@app.command()
def benchmark(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="YAML file, or a preset: smoke, small, literature.")
    ],
    out: Out,
    settings: Settings = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder in which the data sets lie.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Runs at the same time; 0: in this process.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster to use, e.g. auto or HOST:6379.")
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option("--reuse", help="results.jsonl.gz whose runs need not be done again; repeatable."),
    ] = None,
    phi_safe: PhiSafe = None,
    as_json: Json = False,
) -> None:
    """Compare methods over data, noise, rates and seeds; the same command again does what is missing."""
    _hide_names(phi_safe, out)
    from maskmend.benchmark.run import benchmark as run_benchmark

    answer = run_benchmark(
        config, out, data=data, overrides=settings or (), workers=workers, address=address, reuse=reuse or ()
    )
    print_json(answer) if as_json else print(answer["report"])


@app.command()
def audit(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Data set; or a run, whose model has seen its masks.")
    ],
    out: Out,
    settings: Settings = None,
    folds: Annotated[int | None, typer.Option("--folds", help="Models that share the cases; 5.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="How the folds are trained.")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Judge with this run's model; trains nothing.")
    ] = None,
    probs: Annotated[
        Path | None,
        typer.Option("--probs", help="Judge with the probabilities in this folder; trains nothing."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="AUDIT",
            help="Judge new or mended masks like this earlier audit; trains nothing.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Folds at the same time; 0: in this process.")
    ] = 0,
    processes: Processes = None,
    export: Annotated[
        int,
        typer.Option(
            "--export", metavar="N", min=0, help="Work lists of the worst N for CVAT, Label Studio, MONAI."
        ),
    ] = 0,
    config: File = None,
    trust_code: TrustCode = False,
    phi_safe: PhiSafe = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the masks that are wrong: which to redraw first, where each is wrong, and a proposal for each."""
    _hide_names(phi_safe, out)
    given = [*(settings or []), *([f"audit.folds={folds}"] if folds else [])]
    options = _load(config, [*given, *([f"method.name={method}"] if method else [])])
    if processes != 1 and (probs or like):
        from maskmend.fanout import DRAWN_WITH, prepare

        prepare("maskmend.audit.run", "maskmend.audit.report", *DRAWN_WITH)
    from maskmend.audit.run import audit as run_audit

    how: dict[str, Any] = {
        "workers": workers,
        "processes": processes,
        "overwrite": overwrite,
        "trust_code": trust_code,
        "export": export,
    }
    answer = run_audit(source, out, options, run=run, probs=probs, like=like, **how)
    if sys.stderr.isatty():
        from maskmend.audit.overview import worst_table

        whole, narrow = (
            worst_table(answer["records"], not answer["facts"].get("warning"), brief=brief)
            for brief in (False, True)
        )
        print_rich(whole, narrow=narrow, stderr=True)
    print_json(answer) if as_json else print(answer["report"] or answer["table"])


@app.command()
def screen(
    dataset: Annotated[Path, typer.Argument(help="Data set folder or CSV manifest.")],
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "--out", "-o", metavar="CSV", help="Write the whole list.", show_default=False
        ),
    ] = None,
    mend: Annotated[
        Path | None,
        typer.Option("--mend", help="New folder for suspects' masks, drawn where the images explain them."),
    ] = None,
    processes: Processes = None,
    config: File = None,
    phi_safe: PhiSafe = None,
    as_json: Json = False,
) -> None:
    """Rank masks by how little their images explain the outlines: quick, no training, outlines only."""
    _hide_names(phi_safe, out)
    options = _load(config, settings, "data")
    if processes != 1:
        from maskmend.fanout import prepare

        prepare("maskmend.audit.screen")
    from maskmend.audit.screen import screen as run_screen
    from maskmend.data.atomic import write_text

    with counter("looking at outlines") as progress:
        answer = run_screen(dataset, options.data, mend=mend, processes=processes, progress=progress)
    if out:
        write_text(out, answer.to_csv())
    print_json(answer.to_json()) if as_json else print_rich(answer.to_table())


@app.command()
def raters(
    dataset: Annotated[
        Path, typer.Argument(help="Data set with several raters; needs no images and no labels/.")
    ],
    out: Out,
    settings: Settings = None,
    consensus: Annotated[
        str | None,
        typer.Option("--consensus", help="Write one mask per case: majority, staple or weighted."),
    ] = None,
    config: File = None,
    phi_safe: PhiSafe = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare the raters of a data set: agreement, who draws too large, and the cases to adjudicate first."""
    _hide_names(phi_safe, out)
    options = _load(config, settings, "data")
    from maskmend.audit.rater_verb import compare

    with counter("comparing raters") as progress:
        answer = compare(
            dataset, out, options.data, consensus=consensus, overwrite=overwrite, progress=progress
        )
    if as_json:
        print_json(answer.facts)
    else:
        print_rich(answer.report.to_table(), stderr=True)
        print(answer.page)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Method to explain; all are listed without it.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the cost here instead of showing the stored one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the ways of learning with what they need and cost, or explain one and its settings."""
    from maskmend.methods import names
    from maskmend.reference import NARROW, WIDE, describe_method, method_facts, methods_table

    chosen = [name] if name else names()
    if measure:
        from maskmend.benchmark.cost import measure as measure_costs

        costs = measure_costs(chosen)
        facts = [method_facts(known, costs) for known in chosen]
    else:
        facts = [method_facts(known) for known in chosen]
    if as_json:
        print_json(facts[0] if name else facts)
    elif name:
        print(describe_method(name))
    else:
        print_rich(methods_table(facts), narrow=methods_table(facts, NARROW), least=WIDE)


@app.command()
def corrupt(
    dataset: Annotated[Path | None, typer.Argument(help="Data set folder or CSV manifest.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Where the flawed copy goes.")] = None,
    noise: Annotated[str, typer.Option("--noise", help="Preset (see --list), or a YAML file.")] = "mixed",
    rate: Annotated[float | None, typer.Option(help="Share of the training cases, in [0, 1].")] = None,
    target_dice: Annotated[
        str | None, typer.Option(help="Dice that the flawed masks shall keep: 0.8, or liver=0.9,tumour=0.7.")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Reach it in every case, not on average.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other flaws.")] = 0,
    classes: Annotated[str | None, typer.Option(help="Flaw these classes only, e.g. tumour.")] = None,
    layered: Annotated[
        bool, typer.Option("--layered", help="Higher classes lie on lower ones, as a tumour in a liver.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the presets.")] = False,
    as_json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a copy of a data set whose training masks are flawed, with the truth beside it."""
    from maskmend.noise.corrupt_verb import describe, list_presets, run_corrupt

    if listed:
        facts = list_presets()
        print_json(facts) if as_json else print("\n".join(f"{x['name']:<26}{x['summary']}" for x in facts))
        return
    if dataset is None or out is None:
        raise UsageError("needs a data set and -o OUT", None, "see `maskmend corrupt --help`")
    how: dict[str, Any] = {
        "target_dice": target_dice,
        "each": each,
        "seed": seed,
        "classes": classes,
        "layered": layered,
    }
    with counter("flawing") as progress:
        summary = run_corrupt(dataset, out, noise, rate, overwrite=overwrite, progress=progress, **how)
    message(describe(summary))
    print_json(summary) if as_json else print(out)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Report versions, devices, memory and disk, and what is missing."""
    from maskmend.doctor import describe, examine

    facts = examine()
    print_json(facts) if as_json else print(describe(facts))


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("maskmend"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the entry point of `maskmend`.

    Args:
        arguments: words after the program's name; those of the process when None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Else Python looks through all of torch for cycles before it ends, which takes half a second.
    atexit.register(gc.freeze)
    return ended(lambda: _run(words), *(_GO_ON[verb] for verb in words[:1] if verb in _GO_ON))


def _run(words: list[str]) -> int:
    """One command without typer's own handling of interrupts and closed pipes: `main` does that."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("maskmend", words) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def _load(file: Path | None, settings: Sequence[str] | None, *used: str) -> Config:
    """The configuration; `used` names the sections or keys this verb heeds (all when empty)."""
    from maskmend.config import load

    options = load(file, settings or ())
    for text in settings or ():
        key = text.partition("=")[0].strip()
        if used and not any(f"{key}.".startswith(f"{name}.") for name in used):
            raise UsageError("has no effect on this verb", key, f"it heeds: {', '.join(used)}")
    return options


def _hide_names(names: Path | None, out: Path | None) -> None:
    if names is not None:
        start(names, out)
