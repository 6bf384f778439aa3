"""The command line: `slm-calibration run | resume | report | runs | audit | judge | doctor | ui | ...`."""

import argparse
import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from calibration.artifacts import Store
from calibration.backends import BackendConfig
from calibration.config import Experiment, apply_change, changed, load_experiment
from calibration.endpoints import FLAG, addresses_in, endpoints_of
from calibration.errors import CalibrationError, ConfigurationError
from calibration.preflight import preflight
from calibration.records import Split
from calibration.reference import experiment_reference
from calibration.runs import SUMMARY, Run, new_run_id, runs_root
from calibration.variants import expand, read_values
from deployments.audit import add_audit
from deployments.calls import cancelled, listed
from deployments.checks import BACKENDS, backend_of, check_before
from deployments.doctor import findings
from deployments.judge import add_judge, add_judge_audit
from deployments.keeping import add_gc, add_runs
from deployments.plan import Assumptions, load_assumptions, plan, shown
from deployments.ui import add_server, add_ui


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with 0, with 1 when a run failed, or with 2 when it could not be begun."""
    options = _parser().parse_args(arguments)
    _set_environment(options)
    try:
        options.command(options)
    except CalibrationError as error:
        print(f"slm-calibration: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def run(options: argparse.Namespace) -> None:
    """Begin a new run of an experiment."""
    experiment = load_experiment(_experiment_path(options.experiment), options.set)
    if options.flow == "sweep":
        experiment = expand(experiment, dict(map(read_values, options.over)))
    if options.dry_run:
        _print_plan(experiment, _backend(options), load_assumptions(options.assume))
        return
    _start(options, experiment, _backend(options), run=None)


def resume(options: argparse.Namespace) -> None:
    """Continue a run: what is whole is taken from the store."""
    book = Run.find(runs_root(), options.run)
    with book.held():
        record = book.read()
    options.flow, options.base = record.flow, record.baseline
    _start(options, record.experiment, _backend(options, before=json.loads(record.backend)), run=record.run)


def remeasure(options: argparse.Namespace) -> None:
    """Ask the system of a finished run again, and say whether its policy still holds."""
    record = Run.find(runs_root(), options.run).read()
    options.flow, options.base = "remeasure", record.run
    on = _backend(options, before=json.loads(record.backend))
    _start(options, changed(record.experiment, options.set), on, run=None)


def report(options: argparse.Namespace) -> None:
    """Print a run's report and where its page lies."""
    book = Run.find(runs_root(), options.run)
    page = book.folder / "report.md"
    if not page.exists():
        record = book.read()
        raise ConfigurationError(
            f"run {record.run} must have come to its report; it is {book.state().lower()} ({record.error}). "
            f"Continue it: slm-calibration resume {record.run}"
        )
    print(page.read_text(encoding="utf-8"))
    print(f"{book.folder / 'report.html'}")
    if (state := book.state()) != "Completed":
        print(
            f"slm-calibration: run {book.folder.name} is {state.lower()}; this is its last report",
            file=sys.stderr,
        )


def settings(options: argparse.Namespace) -> None:
    """Print the reference of all settings."""
    del options
    print(experiment_reference(), end="")


def doctor(options: argparse.Namespace) -> None:
    """Say what would keep an experiment from running, a line each."""
    experiment = load_experiment(_experiment_path(options.experiment)) if options.experiment else None
    found = asyncio.run(findings(_backend(options), Store.from_environment(), experiment))
    for finding in found:
        print(f"{'ok' if finding.is_well else 'FAIL':5} {finding.what:10} {finding.words}")
    if not all(finding.is_well for finding in found):
        raise SystemExit(1)


def calls(options: argparse.Namespace) -> None:
    """List or cancel the calls that are open on Modal."""
    store = Store.from_environment()
    work = listed(store) if options.action == "list" else cancelled(store, options.keys)
    print("\n".join(asyncio.run(work)))


def _start(options: argparse.Namespace, experiment: Experiment, on: BackendConfig, run: str | None) -> None:
    """Check everything that can be checked cheaply, then hand over to the flow."""
    confirmed = [*options.confirm_endpoint, *_addresses_typed(options)]
    asyncio.run(check_before(experiment, on, is_new=run is None, confirmed=confirmed, say=_say))
    # Prefect reads its settings when it is imported, so it is imported after they are made.
    from deployments.console import run_flow

    name = run or new_run_id(experiment.name)
    before = Run.find(runs_root(), run).read() if run else None
    extra = {"base": options.base} if options.flow in ("compare", "remeasure") else {}
    trouble = run_flow(
        options.flow,
        {
            "experiment": experiment,
            "on": on,
            "run": name,
            "refresh": options.refresh,
            **extra,
        },
    )
    if not (runs_root() / name).exists() or Run.find(runs_root(), name).read() == before:
        raise ConfigurationError(trouble or f"run {name} was stopped before it began")
    book = Run.find(runs_root(), name)
    _print_outcome(book, trouble)
    if options.refresh and not any(stage.name.startswith(options.refresh) for stage in book.stages()):
        known = ", ".join(stage.name for stage in book.stages())
        print(
            f"slm-calibration: --refresh must be how a stage begins, {known}; got {options.refresh!r}. "
            "Nothing was repeated",
            file=sys.stderr,
        )


def _addresses_typed(options: argparse.Namespace) -> list[str]:
    """The addresses on the command line: who types one has agreed to it."""
    typed: dict[str, Any] = {}
    for change in getattr(options, "set", []):
        apply_change(typed, change)
    return addresses_in(typed)


def _say(words: str) -> None:
    print(words, file=sys.stderr)


def _print_outcome(book: Run, trouble: str) -> None:
    record = book.read()
    if (book.folder / SUMMARY).exists():
        print((book.folder / SUMMARY).read_text(encoding="utf-8"))
        print(f"report: {book.folder / 'report.html'}")
    if record.state != "Completed":
        told = record.error if record.state == "Failed" else trouble
        what = f"failed: {told}" if told else "was stopped"
        print(f"slm-calibration: run {record.run} {what}", file=sys.stderr)
        print(f"continue it: slm-calibration resume {record.run}", file=sys.stderr)
        raise SystemExit(1)


def _print_plan(experiment: Experiment, on: BackendConfig, given: Assumptions) -> None:
    """What a run would do and cost; after it, what would keep it from being begun."""
    for endpoint in endpoints_of([experiment, on]):
        _say(str(endpoint))
    questions = experiment.splits.assign(experiment.data.questions())
    counts = Counter(question.split for question in questions)
    shares = ", ".join(f"{counts[split]} {split}" for split in get_args(Split) if counts[split])
    print(f"{experiment.name}: {counts.total()} questions: {shares}")
    print("\n".join(shown(plan(experiment, questions, on, given), on, given)))
    preflight(experiment)


def _backend(options: argparse.Namespace, before: dict[str, Any] | None = None) -> BackendConfig:
    """The backend that was asked for, with its settings; one that is not named is that of before."""
    settings: dict[str, Any] = {"kind": options.backend} if options.backend or not before else before
    for change in options.on:
        apply_change(settings, change)
    return backend_of(settings, "--on")


def _experiment_path(name: str) -> Path:
    """A file, or the name of an experiment that is shipped."""
    if name.endswith(".toml"):
        return Path(name)
    folder = Path(str(files("deployments") / "experiments"))
    path = folder / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
        raise ConfigurationError(f"experiment must be a .toml file or one of {known}; got {name!r}")
    return path


def _set_environment(options: argparse.Namespace) -> None:
    """Point the store, the runs and Prefect's cache to the folders that were asked for."""
    if options.store:
        os.environ["SLM_CALIBRATION_STORE"] = str(Path(options.store).absolute())
    if options.runs:
        os.environ["SLM_CALIBRATION_RUNS"] = str(Path(options.runs).absolute())
    store = Store.from_environment()
    os.environ["PREFECT_LOCAL_STORAGE_PATH"] = str(store.root / "cache")
    # Prefect keeps the error of a failed flow, and outside of this project's folder as a pickle.
    os.environ["PREFECT_RESULTS_DEFAULT_SERIALIZER"] = "json"
    if not options.verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slm-calibration",
        description="Measure, repair and prove the confidence of small language models.",
    )
    parser.add_argument("--store", metavar="DIR", help="where artifacts are kept (default: .calibration)")
    parser.add_argument("--runs", metavar="DIR", help="where reports are written (default: runs)")
    parser.add_argument("--verbose", action="store_true", help="show Prefect's own messages")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("run", help="run an experiment")
    command.set_defaults(command=run)
    command.add_argument("experiment", help="name of a shipped experiment, or a .toml file")
    command.add_argument("--flow", choices=["calibrate", "baseline", "compare", "sweep"], default="calibrate")
    command.add_argument(
        "--base", metavar="RUN", default="latest", help="compare: the run whose models are measured"
    )
    command.add_argument(
        "--set", metavar="SETTING=VALUE", action="append", default=[], help="methods.dpo.beta=0.3"
    )
    command.add_argument(
        "--over",
        metavar="SETTING=VALUES",
        action="append",
        default=[],
        help="sweep: methods.dpo.beta=0.05,0.1,0.3",
    )
    command.add_argument("--dry-run", action="store_true", help="print stages, time and cost, run nothing")
    command.add_argument(
        "--assume", metavar="NAME=VALUE", action="append", default=[], help="for --dry-run: plain_tokens=20"
    )
    _add_execution(command)

    command = commands.add_parser("resume", help="continue a run that was stopped or failed")
    command.set_defaults(command=resume)
    command.add_argument("run", help="id of the run, or latest")
    _add_execution(command)
    command.set_defaults(backend=None)

    command = commands.add_parser("remeasure", help="ask the system of a run again: does its policy hold?")
    command.set_defaults(command=remeasure)
    command.add_argument("run", help="id of the run whose policy is followed, or latest")
    command.add_argument(
        "--set", metavar="SETTING=VALUE", action="append", default=[], help="data.path=new.csv"
    )
    _add_execution(command)
    command.set_defaults(backend=None)

    command = commands.add_parser("report", help="print a run's report")
    command.set_defaults(command=report)
    command.add_argument("run", help="id of the run, or latest")

    add_runs(commands.add_parser("runs", help="list the runs, or delete one"))
    add_gc(commands.add_parser("gc", help="remove from the store what no run refers to"))

    add_ui(commands.add_parser("ui", help="serve everything in the Prefect UI, on this machine"))
    add_server(commands.add_parser("server", help="run the Prefect server alone, for work pools"))

    add_audit(commands.add_parser("audit", help="audit a table of confidences and marks, without any model"))

    add_judge(commands.add_parser("judge", help="judge a table of answers"))
    add_judge_audit(commands.add_parser("judge-audit", help="find out how often a judge errs"))

    command = commands.add_parser("settings", help="print the reference of all settings")
    command.set_defaults(command=settings)

    command = commands.add_parser("doctor", help="check that an experiment could run on a backend")
    command.set_defaults(command=doctor)
    command.add_argument("experiment", nargs="?", help="check its models, too")
    _add_backend(command)

    command = commands.add_parser("calls", help="what is going on on Modal, and what was spent")
    command.set_defaults(command=calls)
    command.add_argument("action", choices=["list", "cancel"])
    command.add_argument(
        "keys", nargs="*", metavar="KEY", help="cancel: only these; how they begin is enough"
    )
    return parser


def _add_execution(command: argparse.ArgumentParser) -> None:
    _add_backend(command)
    command.add_argument(
        FLAG,
        metavar="ADDRESS",
        action="append",
        default=[],
        help="questions and keys may be sent to this address, which the experiment names; needed once",
    )
    command.add_argument(
        "--refresh", metavar="STAGE", help='repeat stages whose name begins so, such as "train dpo"'
    )


def _add_backend(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backend", choices=BACKENDS, default="local", help="where heavy work runs")
    command.add_argument(
        "--on", metavar="SETTING=VALUE", action="append", default=[], help="of the backend: max_usd=50"
    )
