"""The command `audit`: from a table of confidences and marks to a report, and a policy for a router."""

import argparse
import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from calibration.audit import Audit, Columns
from calibration.config import apply_change, explain
from calibration.errors import ConfigurationError
from calibration.fingerprint import library_versions, package_digest
from calibration.report.figures import draw
from calibration.report.page import RenderedReport, RunInfo, render
from calibration.routing.build import LIFETIME
from calibration.runs import runs_root
from calibration.sources.rows import stem

LIBRARIES = ("slm-calibration", "numpy", "scipy", "pandas", "pydantic", "matplotlib")
"""What decides an audit's numbers and pictures."""


def add_audit(command: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    command.set_defaults(command=audit)
    command.epilog = (
        "--set also takes router.kind=certified with router.accuracy=0.9, router.kind=budget with "
        "router.escalated=0.3, and every price; docs/experiment.md describes them under Prices, Certified "
        "and Budget."
    )
    command.add_argument("table", metavar="TABLE", help="csv, jsonl or parquet file, one row an answer")
    command.add_argument(
        "--base", metavar="TABLE", help="compare with this system, on the same questions; needs --id"
    )
    command.add_argument(
        "--calibration",
        metavar="TABLE",
        help="fit maps and thresholds on these answers to other questions, instead of cross-fitting; "
        "needs --id",
    )
    columns = command.add_argument_group("columns", "what each column of TABLE says")
    for name, field in Columns.model_fields.items():
        is_list = name == "missing"
        columns.add_argument(
            f"--{name}",
            metavar="TEXT" if is_list else "COLUMN",
            action="append" if is_list else "store",
            help=(field.description or "").replace("\n", " "),
        )
    for name in ("confidence", "correct"):
        columns.add_argument(
            f"--base-{name}", metavar="COLUMN", help=f"the column of the base, where it is not --{name}"
        )
    command.add_argument("--name", help="what the system is called (default: the file's name)")
    command.add_argument("--base-name", help="what the base is called (default: its file's name)")
    command.add_argument(
        "--measured",
        metavar="DATE",
        help="when the answers were given, a date or an ISO 8601 time (default: now); the policy is followed "
        f"for {LIFETIME.days} days from then",
    )
    command.add_argument("--seed", type=int, default=0, help="seeds the intervals")
    command.add_argument(
        "--set", metavar="SETTING=VALUE", action="append", default=[], help="prices.llm_accuracy=0.8"
    )
    command.add_argument(
        "--out",
        metavar="DIR",
        help="where the report is written (default: RUNS/audit-NAME): a new or empty folder, or one with an "
        "earlier audit's report, which is replaced",
    )


def audit(options: argparse.Namespace) -> None:
    """Audit a table; needs no model, no account and no server."""
    started = time.monotonic()
    plan = _plan(options)
    out = _folder(options.out, plan)
    remarks: list[str] = []
    evaluation = plan.run(remarks.append)
    info = RunInfo(
        run=out.name,
        experiment=plan.name,
        seed=plan.seed,
        backend=json.dumps({"kind": "local"}),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 3),
        stages=(),
        versions={"python": platform.python_version(), **library_versions(LIBRARIES)},
        settings=plan.model_dump_json(),
        code=package_digest(),
    )
    report = render(evaluation, info, draw(evaluation))
    _write(out, report)
    print(report.summary)
    for sentence in remarks:
        print(f"note: {sentence}")
    print(f"report: {out / 'report.html'}")


def _plan(options: argparse.Namespace) -> Audit:
    given = {name: getattr(options, name) for name in Columns.model_fields}
    columns = {name: column for name, column in given.items() if column is not None}
    settings: dict[str, Any] = {
        "name": stem(Path(options.table)) if options.name is None else options.name,
        "table": {"path": options.table, "columns": columns},
        "calibration": options.calibration,
        "seed": options.seed,
        **_base(options, columns),
    }
    if options.measured is not None:
        settings["measured"] = options.measured
    for change in options.set:
        apply_change(settings, change)
    try:
        return Audit.model_validate(settings)
    except ValidationError as error:
        problem = explain(error, settings, Audit, see="slm-calibration audit --help")
        raise ConfigurationError(f"audit: {problem}") from error


def _base(options: argparse.Namespace, columns: dict[str, Any]) -> dict[str, Any]:
    """The settings of the base: the columns of the audited system but for those it has of its own."""
    own = {"confidence": options.base_confidence, "correct": options.base_correct}
    if options.base is None:
        for name, value in {**own, "name": options.base_name}.items():
            if value is not None:
                raise ConfigurationError(
                    f"--base-{name} must come with --base; got {value!r} alone. Name the base's table as well"
                )
        return {}
    shared = {name: column for name, column in columns.items() if name != "group"}
    return {
        "base": {
            "path": options.base,
            "columns": shared | {name: column for name, column in own.items() if column is not None},
        },
        "base_name": stem(Path(options.base)) if options.base_name is None else options.base_name,
    }


def _folder(given: str | None, plan: Audit) -> Path:
    """Where the report goes, where it replaces nothing but an earlier audit.

    Raises:
        ConfigurationError: Something else is there, or, without --out, the audit of another table.
    """
    out = Path(given).absolute() if given is not None else runs_root() / f"audit-{plan.name}"
    try:
        if not out.exists():
            return out
        if not out.is_dir():
            raise ConfigurationError(f"--out must be a folder; {out} is a file. Name another place")
        if not any(out.iterdir()):
            return out
    except OSError as error:
        raise _unwritable(out, error) from error
    table = _audited(out)
    if table is None:
        raise ConfigurationError(
            f"--out must be a new or empty folder, or one with an earlier audit; {out} holds other files. "
            "Name another place"
        )
    if given is None and table != str(plan.table.path):
        raise ConfigurationError(
            f"{out} holds the audit of {table}, and is not replaced by that of {plan.table.path}. Give this "
            "one another --name, or its place with --out"
        )
    return out


def _audited(folder: Path) -> str | None:
    """The table whose audit the folder holds; None when it holds none."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return str(report["settings"]["table"]["path"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(out: Path, report: RenderedReport) -> None:
    """Write the report's files, and leave no policy of an earlier audit beside them."""
    files = report.files()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for policy in out.glob("router_policy*.json"):
            policy.unlink()
        for name, content in files.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"--out must be a writable folder; {out}: {error.strerror}. Name another place")
