"""A sweep: one method with other settings in each cell, and which cell is best without a look at the test.

The cells are methods of one experiment, so they share its baseline and everything else that is stored.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from pydantic import Field

from calibration.config import Experiment, checked
from calibration.errors import ConfigurationError
from calibration.metrics.inference import noninferior
from calibration.metrics.ranking import auroc
from calibration.records import Split
from calibration.schema import Schema
from calibration.systems import ENOUGH_TO_FIT, READABLE, Scores, System, skill_after_map
from calibration.verdict import ACCURACY_MARGIN

Value: TypeAlias = bool | int | float | str
Grid: TypeAlias = dict[str, list[Value]]
"""The values of each setting, such as {"methods.dpo.beta": [0.05, 0.1]}."""

CHOOSING: Split = "validation"
"""The split on which cells are ranked."""


class Cell(Schema):
    """One cell of a sweep; its figures are about the validation questions."""

    name: str
    n: int = Field(default=0, ge=0)
    """Questions judged and with a readable confidence."""
    accuracy: float | None = None
    skill: float | None = None
    """Brier skill behind a Platt map; None where no map can be fitted."""
    auroc: float | None = None
    problem: str = ""
    """Why it cannot be chosen; empty when it can."""


class Sweep(Schema):
    """What a sweep found: the content of `sweep.json`."""

    chosen: str | None
    """The best cell, for which alone the test questions are opened; None when none can be chosen."""
    base: Cell
    """The model before any training, for comparison."""
    cells: tuple[Cell, ...]
    """Best first; those that cannot be chosen last."""


def read_values(text: str) -> tuple[str, list[Value]]:
    """A setting and its values, from a text such as "methods.dpo.beta=0.05,0.1,0.3".

    >>> read_values("methods.dpo.beta=0.05,0.1")
    ('methods.dpo.beta', [0.05, 0.1])
    >>> read_values("methods.dpo.targets=binary,moderate")
    ('methods.dpo.targets', ['binary', 'moderate'])
    """
    path, sign, listed = text.partition("=")
    if not sign or not listed:
        raise ConfigurationError(f"a sweep must be over such as methods.dpo.beta=0.05,0.1; got {text!r}")
    try:
        return path, tomllib.loads(f"values = [{listed}]")["values"]
    except tomllib.TOMLDecodeError:
        return path, [value.strip() for value in listed.split(",")]


def expand(experiment: Experiment, over: Mapping[str, Sequence[Value]]) -> Experiment:
    """The same experiment with a method for each cell of the grid, and no others.

    Settings of one method are crossed; each method has a grid of its own. A cell is called after its
    method, its settings and their values: `dpo-beta-0.3`.

    Raises:
        ConfigurationError: A setting is none of a method of the experiment, a value cannot be one, two cells
            would have one name, or there are no questions to choose on.
    """
    if not over:
        raise ConfigurationError(
            "a sweep must be over a setting; got none. Give it as methods.dpo.beta=0.1,0.3"
        )
    if not experiment.splits.validation:
        raise ConfigurationError("a sweep must have questions to choose on; give splits.validation a share")
    settings = experiment.model_dump(mode="json")
    grids: dict[str, dict[str, Sequence[Value]]] = {}
    for path, values in over.items():
        top, _, rest = path.partition(".")
        method, _, setting = rest.partition(".")
        if top != "methods" or method not in experiment.methods or not setting:
            known = (
                ", ".join(f"methods.{name}.SETTING" for name in experiment.methods)
                or "none: it has no method"
            )
            raise ConfigurationError(f"a sweep must be over one of {known}; got {path!r}")
        if not values:
            raise ConfigurationError(f"{path} must have a value to try; got none")
        grids.setdefault(method, {})[setting] = values
    cells: dict[str, Any] = {}
    for method, grid in grids.items():
        for name, cell in _cells(method, settings["methods"][method], grid):
            if name in cells:
                raise ConfigurationError(f"each cell must have a name of its own; {name!r} is that of two")
            cells[name] = cell
    return checked({**settings, "methods": cells}, experiment.name)


def _cells(
    method: str, settings: dict[str, Any], grid: Mapping[str, Sequence[Value]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for values in product(*grid.values()):
        cell, parts = deepcopy(settings), [method]
        for path, value in zip(grid, values, strict=True):
            *parents, leaf = path.split(".")
            place = cell
            for parent in parents:
                place = place.setdefault(parent, {})
            place[leaf] = value
            parts += [leaf, _word(value)]
        yield "-".join(parts), cell


def _word(value: Value) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower())


def rank(base: System, cells: Mapping[str, System], failed: Mapping[str, str], *, seed: int) -> Sweep:
    """Order the cells by their Brier skill behind a map on the validation split, and choose the first.

    A cell cannot be chosen when fewer than 99 % of its confidences can be read, or when its accuracy is
    certainly lower than the base's by more than `ACCURACY_MARGIN`: no verdict would pass it.

    Args:
        base: The model before any training, with the splits `calibration` and `validation`.
        cells: What each cell made of it, with the same.
        failed: Why other cells have no answers.
        seed: Seeds the intervals of accuracy.
    """
    measured = [_cell(name, base, system, seed) for name, system in cells.items()]
    measured.sort(key=lambda cell: (bool(cell.problem), -np.inf if cell.skill is None else -cell.skill))
    able = [cell for cell in measured if not cell.problem]
    return Sweep(
        chosen=able[0].name if able else None,
        base=_cell(base.name, base, base, seed),
        cells=(*measured, *(Cell(name=name, problem=problem) for name, problem in failed.items())),
    )


def _cell(name: str, base: System, system: System, seed: int) -> Cell:
    scores = system.on(CHOOSING)
    skill, n = skill_after_map(system, CHOOSING), int(scores.usable.sum())
    ranking = float(auroc(scores.outcomes())) if n else np.nan
    return Cell(
        name=name,
        n=n,
        accuracy=float(scores.correct[scores.judged].mean()) if scores.judged.any() else None,
        skill=float(skill) if np.isfinite(skill) else None,
        auroc=ranking if np.isfinite(ranking) else None,
        problem=_problem(base.on(CHOOSING), scores, seed) if np.isfinite(skill) else _unfit(scores),
    )


def _unfit(scores: Scores) -> str:
    usable, judged = int(scores.usable.sum()), int(scores.judged.sum())
    if judged < ENOUGH_TO_FIT:
        return f"{judged} validation answers are too few; it takes {ENOUGH_TO_FIT}"
    if usable < READABLE * judged:
        return f"only {usable} of {judged} confidences can be read"
    return "no map can be fitted"


def _problem(base: Scores, cell: Scores, seed: int) -> str:
    both = set(base.where(base.judged).ids) & set(cell.where(cell.judged).ids)
    old, new = (
        scores.where(np.array([question in both for question in scores.ids], dtype=np.bool_))
        for scores in (base, cell)
    )
    if not both:
        return "no question has a judged answer by it and by the base"
    change = noninferior(old, new, margin=ACCURACY_MARGIN, seed=seed).change
    if not change.high < -ACCURACY_MARGIN:  # nan where the base is never right: nothing to lose
        return ""
    return f"it loses accuracy: {old.correct.mean():.3f} to {new.correct.mean():.3f}"
