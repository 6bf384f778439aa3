"""The commands `runs` and `gc`: what runs there are, and what none of them needs."""

import argparse
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from calibration.artifacts import Store
from calibration.errors import ConfigurationError
from calibration.runs import Run, runs_root
from calibration.stewardship import FOLDERS, Leftover, alone, leftovers, runs_folders, settle_folders

UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def add_runs(command: argparse.ArgumentParser) -> None:
    """Describe the arguments of `runs`."""
    command.set_defaults(command=runs)
    command.add_argument("--delete", metavar="RUN", help="delete this run's folder, report and all")


def add_gc(command: argparse.ArgumentParser) -> None:
    """Describe the arguments of `gc`."""
    command.set_defaults(command=gc)
    command.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    command.add_argument(
        "--older-than", metavar="AGE", type=_age, default=timedelta(), help="keep what is younger: 30d, 12h"
    )
    command.add_argument(
        "--forget",
        metavar="DIR",
        action="append",
        type=lambda folder: Path(folder).resolve(),
        default=[],
        help="this folder of runs is gone for good, or is where --runs points now",
    )


def runs(options: argparse.Namespace) -> None:
    """List the runs, oldest first, or delete one."""
    if options.delete:
        book = Run.find(runs_root(), options.delete)
        book.delete()
        print(f"deleted {book.folder}; slm-calibration gc removes what only it used")
        return
    for book in Run.all(runs_root()):
        record, state = book.read(), book.state()
        age = _rough(datetime.now(UTC) - record.started)
        spent = f"{book.spending().usd:.2f} USD"
        line = f"{record.run:44} {record.flow:10} {state:10} {age:>5} {spent:>10}  {_came_to(book, state)}"
        print(line.rstrip())


def gc(options: argparse.Namespace) -> None:
    """Remove what no run refers to."""
    store = Store.from_environment()
    if not (store.root / FOLDERS).exists():
        raise ConfigurationError(f"the store must have been used by a run; none has used {store.root}")
    if options.dry_run:
        print(_looked_in(store))
        print("\n".join(_shown(leftovers(store, options.older_than), "would be removed")))
        return
    with alone(store):
        settle_folders(store, options.forget)
        print(_looked_in(store))
        found = leftovers(store, options.older_than)
        for leftover in found:
            leftover.remove()
    print("\n".join(_shown(found, "removed")))


def _looked_in(store: Store) -> str:
    folders = [f"{folder}{'' if folder.is_dir() else ' (gone)'}" for folder in runs_folders(store)]
    return f"runs are looked for in {', '.join(folders) or 'no folder'}"


def _shown(found: list[Leftover], done: str) -> list[str]:
    """A line for each large thing, and one for each kind."""
    counts, sizes = Counter(item.kind for item in found), Counter[str]()
    for item in found:
        sizes[item.kind] += item.bytes
    lines = [f"{done}: {item.path} ({_size(item.bytes)})" for item in found if item.kind == "artifacts"]
    lines += [f"{counts[kind]:6} {kind:12} {_size(sizes[kind]):>10}" for kind in counts]
    return [*lines, f"{len(found)} {done}, {_size(sizes.total())}"]


def _came_to(book: Run, state: str) -> str:
    if state == "Completed":
        return ""
    stages = book.stages()
    after = f"after {stages[-1].name}" if stages else "before the first stage"
    return f"{'in' if state == 'Running' else 'at'} {place}" if (place := book.stopped_at()) else after


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+)([mhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"an age must look like 30d, 12h or 90m; got {text!r}")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def _rough(age: timedelta) -> str:
    """An age in its largest unit."""
    minutes = int(age.total_seconds() // 60)
    if minutes < 120:
        return f"{minutes} m"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{age.days} d"


def _size(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
