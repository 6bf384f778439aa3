"""The commands `judge` and `judge-audit`: verdicts on answers that anybody has, and the judge's own error."""

import argparse
import asyncio
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import numpy as np
from pydantic import ValidationError

from calibration import auditing
from calibration.artifacts import Store
from calibration.config import apply_change, explain
from calibration.endpoints import endpoints_of
from calibration.errors import ConfigurationError, JudgeError
from calibration.judges import Judge, JudgeConfig
from calibration.judges.cascade import model_behind
from calibration.judges.ledger import asking_as
from calibration.marking import (
    AnswerColumns,
    Answers,
    agreement,
    check_carried,
    check_table_path,
    read_answers,
    read_mark,
    write_table,
)
from calibration.metrics.inference import Estimate
from calibration.metrics.noise import bounds
from calibration.records import Label, Verdict
from calibration.runs import BASELINE, Run, runs_root
from calibration.schema import Schema
from calibration.stages.baseline import Baseline

QUIET_SECONDS = 60.0
"""Where standard error is no terminal, progress is a line in so many seconds."""
_TABLE_HELP = "csv, jsonl or parquet file"


class _Settings(Schema):
    """What --judge and --set say."""

    judge: JudgeConfig


def add_judge(command: argparse.ArgumentParser) -> None:
    """Describe the arguments of `judge`."""
    command.set_defaults(command=judge)
    command.add_argument("answers", metavar="ANSWERS", help=f"{_TABLE_HELP}, one row an answer")
    command.add_argument(
        "--judge",
        metavar="KIND",
        required=True,
        help="exact, gemini, gemini-batch, openai, cascade, recorded",
    )
    command.add_argument(
        "--set", metavar="SETTING=VALUE", action="append", default=[], help="judge.max_usd=5"
    )
    columns = command.add_argument_group("columns", "what each column of ANSWERS says")
    for name, field in AnswerColumns.model_fields.items():
        is_list = name == "missing"
        columns.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="COLUMN" if name not in ("missing", "gold_separator") else "TEXT",
            action="append" if is_list else "store",
            help=(field.description or "").replace("\n", " "),
        )
    columns.add_argument(
        "--against",
        metavar="COLUMN",
        help="marks to compare with: agreement, kappa, sensitivity, specificity",
    )
    command.add_argument(
        "--max-unjudged",
        metavar="SHARE",
        type=float,
        default=0.01,
        help="largest share that may stay without a verdict (default: .01)",
    )
    command.add_argument(
        "--out", metavar="FILE", help="csv, jsonl or parquet (default: NAME.verdicts.csv beside ANSWERS)"
    )


def add_judge_audit(command: argparse.ArgumentParser) -> None:
    """Describe the arguments of `judge-audit`."""
    steps = command.add_subparsers(required=True, metavar="STEP")
    step = steps.add_parser("table", help="write the verdicts of a run as a table, for the steps below")
    step.set_defaults(command=table)
    step.add_argument("run", help="id of a run, or latest")
    step.add_argument("--out", metavar="FILE", help="default: verdicts.csv in the run's folder")
    step = steps.add_parser("sample", help="draw answers into a csv file that a person fills in")
    step.set_defaults(command=sample)
    step.add_argument("verdicts", metavar="VERDICTS", help="what `judge` wrote")
    step.add_argument("--n", type=int, default=200, help="answers, half of either mark (default: 200)")
    step.add_argument(
        "--disagreements",
        metavar="N",
        type=int,
        help="at most so many further answers on which the rules of `exact` disagree (default: half of n)",
    )
    step.add_argument("--seed", type=int, default=0, help="seeds the draw")
    step.add_argument("--out", metavar="FILE", help="default: NAME.sample.csv beside VERDICTS")
    step = steps.add_parser("read", help="read the filled-in sample: sensitivity and specificity")
    step.set_defaults(command=read)
    step.add_argument("verdicts", metavar="VERDICTS", help="what `judge` wrote")
    step.add_argument("sample", metavar="SAMPLE", help="what `judge-audit sample` wrote, filled in")
    step.add_argument("--confidence", metavar="COLUMN", help="look at each third by confidence as well")
    step.add_argument("--out", metavar="FILE", help="default: NAME.audited.csv beside VERDICTS")


def judge(options: argparse.Namespace) -> None:
    """Judge answers, and write a row for each."""
    by, columns, out = _judge(options), _columns(options), _out(options.out, options.answers, "verdicts")
    if not 0 <= options.max_unjudged <= 1:
        raise ConfigurationError(f"--max-unjudged must be a share in [0, 1]; got {options.max_unjudged}")
    others = [options.against] if options.against else []
    answers = read_answers(Path(options.answers), columns, others)
    check_carried(answers)
    truth = [read_mark(row, options.against) for row in answers.rows] if options.against else None
    Store.from_environment().check_writable()
    by.check(answers.questions)
    for endpoint in endpoints_of(by):
        print(endpoint, file=sys.stderr)
    model, asker = model_behind(by), uuid4().hex
    try:
        with asking_as(asker):
            verdicts = _run(by, answers)
    finally:
        for cost in model.costs(asker) if model else []:
            print(f"cost: {cost}")
    write_table(out, answers.with_verdicts(verdicts))
    marks = [math.nan if verdict.is_correct is None else float(verdict.is_correct) for verdict in verdicts]
    _print_counts(by, verdicts, marks)
    if truth is not None:
        _print_agreement(options.against, marks, truth)
    print(f"verdicts: {out}")
    _check_judged(verdicts, options.max_unjudged)


def table(options: argparse.Namespace) -> None:
    """Write the verdicts of a run on its measured models' answers."""
    book = Run.find(runs_root(), options.run)
    out = Path(options.out) if options.out else book.folder / "verdicts.csv"
    check_table_path(out)
    if not (book.folder / BASELINE).exists():
        raise ConfigurationError(
            f"run {book.folder.name} must have come to its report; it has not. "
            f"Continue it: slm-calibration resume {book.folder.name}"
        )
    baseline = Baseline.model_validate_json((book.folder / BASELINE).read_text(encoding="utf-8"))
    rows = auditing.verdict_rows(baseline, Store.from_environment())
    write_table(out, rows)
    print(f"{len(rows)} verdicts: {out}")


def sample(options: argparse.Namespace) -> None:
    """Draw the answers that a person marks."""
    if options.n < 2:
        raise ConfigurationError(f"--n must be at least 2, one of either mark; got {options.n}")
    if options.seed < 0:
        raise ConfigurationError(f"--seed must be at least 0; got {options.seed}")
    out = _out(options.out, options.verdicts, "sample")
    if out.exists():
        raise ConfigurationError(
            f"--out must not exist yet; {out} may hold a person's marks. Name another file, or delete it"
        )
    verdicts = auditing.read_verdicts(Path(options.verdicts))
    extra = options.n // 2 if options.disagreements is None else options.disagreements
    rows = auditing.draw(verdicts, options.n, seed=options.seed, disagreements=max(extra, 0))
    write_table(out, rows)
    drawn = Counter(row["stratum"] for row in rows)
    print(
        f"{drawn['mark']} answers drawn by mark, {drawn['disagreement']} of "
        f"{len(verdicts.disagreements)} on which the rules of exact disagree"
    )
    print(f"fill in the column truth with 1 or 0: {out}")


def read(options: argparse.Namespace) -> None:
    """Estimate the judge's errors from the marks of a person."""
    out = _out(options.out, options.verdicts, "audited")
    others = [options.confidence] if options.confidence else []
    verdicts = auditing.read_verdicts(Path(options.verdicts), others)
    filled = auditing.read_sample(Path(options.sample), verdicts)
    found = auditing.report(verdicts, filled, options.confidence)
    write_table(out, filled.table(verdicts))
    audit = found.audit
    print(f"{audit.right + audit.wrong} answers drawn by mark: {audit.right} right, {audit.wrong} wrong")
    if filled.unfilled:
        print(f"{filled.unfilled} rows are not filled in; if they are the hard ones, this is too kind")
    print(f"sensitivity {_shown(audit.sensitivity)}")
    print(f"specificity {_shown(audit.specificity)}")
    if found.disagreement.n:
        print(
            f"of {found.disagreement.n} further answers on which the rules of exact disagree, the judge is "
            f"right on {_shown(found.disagreement.agreement)}; they are not in the rates above"
        )
    for third in found.terciles:
        rates = third.why
        if third.audit:
            rates = f"sensitivity {_shown(third.audit.sensitivity)}, "
            rates += f"specificity {_shown(third.audit.specificity)}"
        print(f"{options.confidence} {third.low:.3f} to {third.high:.3f}: {rates}")
    if found.without_confidence:
        print(f"{found.without_confidence} judged answers have no {options.confidence}")
    print(f"wrong marks {auditing.error_rate(audit):.4f}, at the shares at which the marks are given")
    print(f"for slm-calibration audit --correct verdict --truth truth, and judge_audit.path: {out}")


def _judge(options: argparse.Namespace) -> JudgeConfig:
    settings: dict[str, Any] = {"judge": {"kind": options.judge}}
    for change in options.set:
        apply_change(settings, change)
    try:
        return _Settings.model_validate(settings).judge
    except ValidationError as error:
        is_missing = error.errors()[0]["type"] == "missing"
        remedy = ". Give it with --set judge.NAME=VALUE" if is_missing else ""
        problem = explain(error, settings, _Settings, see="docs/experiment.md")
        raise ConfigurationError(f"{problem}{remedy}") from error


def _columns(options: argparse.Namespace) -> AnswerColumns:
    given = {name: getattr(options, name) for name in AnswerColumns.model_fields if getattr(options, name)}
    return AnswerColumns.model_validate(given)


def _out(given: str | None, source: str, what: str) -> Path:
    """Where to write; refused before any work where that cannot be."""
    stem = Path(Path(source).name.removesuffix(".gz")).stem.removesuffix(".verdicts")
    out = Path(given) if given else Path(source).with_name(f"{stem}.{what}.csv")
    if out.absolute() == Path(source).absolute():
        raise ConfigurationError(f"--out must be another file than the one that is read; got {out}")
    check_table_path(out)
    return out


def _run(by: JudgeConfig, answers: Answers) -> list[Verdict]:
    """Judge, with progress on standard error.

    Raises:
        SystemExit: With 1 when judging had to stop, and with 130 on Ctrl-C. What was answered is kept.
    """
    progress = _Progress()
    try:
        return asyncio.run(by.judge(answers.items, progress=progress))
    except JudgeError as error:
        progress.end()
        print(f"slm-calibration: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        progress.end()
        print(
            "slm-calibration: stopped. Every verdict so far is kept; run it again to go on", file=sys.stderr
        )
        raise SystemExit(130) from None
    finally:
        progress.end()


class _Progress:
    """One line on a terminal, over and over; elsewhere a line now and then, and the last one."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._is_live, self._shown, self._line = sys.stderr.isatty(), time.monotonic(), ""

    def __call__(self, fraction: float, note: str) -> None:
        self._line = f"{fraction:4.0%}  {note}"
        if self._is_live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{self._line[:width]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._shown > QUIET_SECONDS:
            self._shown = time.monotonic()
            print(self._line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the last line standing."""
        if self._line:
            print("" if self._is_live else self._line, file=sys.stderr, flush=True)
        self._line = ""


def _print_counts(by: Judge, verdicts: Sequence[Verdict], marks: Sequence[float]) -> None:
    counts = Counter(verdict.label for verdict in verdicts)
    shares = ", ".join(f"{counts[label]} {label}" for label in get_args(Label) if counts[label])
    print(f"{len(verdicts)} answers by {by.version}: {shares}")
    low, high = bounds(marks)
    judged = np.isfinite(marks)
    if judged.any():
        accuracy = float(np.nanmean(marks))
        whatever = f"; {low:.4f} to {high:.4f} whatever the unjudged are" if counts["unjudged"] else ""
        print(f"accuracy {accuracy:.4f}{whatever}")
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.label == "unjudged")
    for reason, count in reasons.most_common(5):
        print(f"unjudged, {count}: {reason}")


def _print_agreement(column: str, marks: Sequence[float], truth: Sequence[float]) -> None:
    found = agreement(marks, truth)
    print(f"against {column!r}, {found.n} answers marked by both, {found.left_out} left out:")
    print(f"  agreement   {_shown(found.agreement)}")
    print(f"  kappa       {found.kappa:.4f}")
    print(f"  sensitivity {_shown(found.sensitivity)}: {found.right_marked_right} of {found.right}")
    print(f"  specificity {_shown(found.specificity)}: {found.wrong_marked_wrong} of {found.wrong}")


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ({estimate.low:.4f} to {estimate.high:.4f})"


def _check_judged(verdicts: Sequence[Verdict], max_unjudged: float) -> None:
    unjudged = sum(verdict.label == "unjudged" for verdict in verdicts)
    if unjudged > max_unjudged * len(verdicts):
        print(
            f"slm-calibration: at most {max_unjudged:.1%} of the answers may stay unjudged; {unjudged} of "
            f"{len(verdicts)} did. All verdicts are written. Run it again, or raise --max-unjudged if those "
            "may be left out",
            file=sys.stderr,
        )
        raise SystemExit(1)
