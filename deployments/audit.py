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
from calibration.runs import runs_root

LIBRARIES = ("slm-calibration", "numpy", "scipy", "pandas", "pydantic", "matplotlib")
"""What decides an audit's numbers and pictures."""


def add_audit(command: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    command.set_defaults(command=audit)
    command.add_argument("table", metavar="TABLE", help="csv, jsonl or parquet file, one row an answer")
    command.add_argument("--base", metavar="TABLE", help="compare with this system, on the same questions")
    command.add_argument(
        "--calibration",
        metavar="TABLE",
        help="fit maps and thresholds on these answers instead of cross-fitting",
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
    command.add_argument("--seed", type=int, default=0, help="seeds the intervals")
    command.add_argument(
        "--set", metavar="SETTING=VALUE", action="append", default=[], help="prices.llm_accuracy=0.8"
    )
    command.add_argument(
        "--out", metavar="DIR", help="where the report is written (default: RUNS/audit-NAME)"
    )


def audit(options: argparse.Namespace) -> None:
    """Audit a table; needs no model, no account and no server."""
    started = time.monotonic()
    plan = _plan(options)
    out = Path(options.out) if options.out else runs_root() / f"audit-{plan.name}"
    evaluation = plan.run()
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
    _write(out, render(evaluation, info, draw(evaluation)))


def _plan(options: argparse.Namespace) -> Audit:
    columns = {name: getattr(options, name) for name in Columns.model_fields if getattr(options, name)}
    settings: dict[str, Any] = {
        "name": options.name or _stem(options.table),
        "table": {"path": options.table, "columns": columns},
        "calibration": options.calibration,
        "seed": options.seed,
    }
    if options.base:
        own = {"confidence": options.base_confidence, "correct": options.base_correct}
        given = {name: column for name, column in own.items() if column}
        settings["base"] = {"path": options.base, "columns": columns | given}
        settings["base_name"] = options.base_name or _stem(options.base)
    for change in options.set:
        apply_change(settings, change)
    try:
        return Audit.model_validate(settings)
    except ValidationError as error:
        raise ConfigurationError(f"audit: {explain(error, settings)}") from error


def _stem(path: str) -> str:
    """The name of a file without its endings."""
    return Path(path).name.split(".")[0]


def _write(out: Path, report: RenderedReport) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in report.files().items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"--out must be a writable folder; {out}: {error.strerror}") from error
    print(report.summary)
    print(f"report: {out / 'report.html'}")
