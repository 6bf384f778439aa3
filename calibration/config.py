"""An experiment: one TOML file, one flow parameter, everything that decides the numbers."""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from calibration.confidence import READOUTS, Readout
from calibration.engines import EngineConfig
from calibration.engines.hf import Hf
from calibration.errors import ConfigurationError
from calibration.judges import JudgeConfig
from calibration.methods import MethodConfig
from calibration.models import WeightsConfig
from calibration.records import Elicitation
from calibration.routing.goals import CostOptimal, Goal
from calibration.routing.rules import Prices
from calibration.schema import Schema
from calibration.shards import Shards
from calibration.sources import SourceConfig
from calibration.splits import Splits
from calibration.worlds.facts import World

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
"""A name that can stand in file names, tables and commands."""

RESERVED = frozenset({"base", "constant"})


class Model(Schema):
    """One model to be measured."""

    weights: WeightsConfig | None = None
    """Where its weights come from; none for answers that were recorded elsewhere."""
    engine: EngineConfig = Hf()
    """What runs it."""
    elicitations: tuple[Elicitation, ...] | None = None
    """How it is asked; unset, in every way that its engine can serve."""

    @property
    def asked(self) -> tuple[Elicitation, ...]:
        """How it is asked."""
        return self.elicitations or self.engine.elicitations


class Experiment(Schema):
    """What to measure, what to teach, and how to judge it."""

    name: Name
    seed: int = Field(default=0, ge=0)
    """Seeds training and the intervals' resampling."""
    data: SourceConfig
    """Where the questions come from."""
    splits: Splits = Splits()
    """Which questions may be used for what."""
    shards: Shards = Shards()
    """How many questions become several jobs of inference."""
    models: dict[Name, Model] = Field(min_length=1)
    """The models, by name; each is measured."""
    target: Name | None = None
    """The model that is taught and compared; unset, the first."""
    judge: JudgeConfig
    """Who says what is right."""
    max_unjudged: float = Field(default=0.01, ge=0, le=1)
    """Largest share of a system's answers that may stay without a verdict. Above it the stage fails, with
    every verdict kept: an answer that nobody could judge is not wrong, and leaving many out misleads."""
    methods: dict[Name, MethodConfig] = Field(default_factory=dict)
    """What is tried to repair the target, by name."""
    readout: Readout = "geometric_mean"
    """How the target's confidence is read before any repair; improvements are counted from it."""
    prices: Prices = Prices()
    """What answers cost and are worth."""
    router: Goal = CostOptimal()
    """What the router's policy aims at."""

    @property
    def target_name(self) -> str:
        """The model that is taught and compared."""
        return self.target or next(iter(self.models))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.target_name not in self.models:
            raise ValueError(f"target must be one of {', '.join(self.models)}; got {self.target_name!r}")
        target = self.models[self.target_name]
        if taken := RESERVED & set(self.methods):
            raise ValueError(
                f"a method must not be named {next(iter(taken))!r}; that name means a reference row"
            )
        if self.methods and target.weights is None:
            raise ValueError(f"model {self.target_name!r} must have weights to be taught; give it `weights`")
        if not any(self.readout in READOUTS[elicitation] for elicitation in target.asked):
            raise ValueError(
                f"readout {self.readout!r} needs another elicitation than {', '.join(target.asked)}"
            )
        if self.methods and set(target.asked) != {"plain", "stated"}:
            raise ValueError(f"model {self.target_name!r} must be asked in both ways to be taught")
        if not isinstance(self.data, World):
            for name, model in self.models.items():
                if model.weights is not None and model.weights.kind == "pocket":
                    raise ValueError(
                        f"model {name!r} is trained on a world's text; data.kind must be 'world'"
                    )
        return self


def load_experiment(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Read an experiment from a TOML file.

    Args:
        path: The file.
        changes: Settings to change, such as "methods.dpo.beta=0.3"; a value is read as TOML, and as text
            where it is none.

    Raises:
        ConfigurationError: The file is not there, is no TOML, or says what no experiment can be; names
            the setting, its value and what it must be.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} must be an experiment; {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} must be TOML; {error}") from error
    for change in changes:
        apply_change(settings, change)
    try:
        return TypeAdapter(Experiment).validate_python(settings)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {explain(error, settings)}") from error


def explain(error: ValidationError, settings: object) -> str:
    """The first thing wrong, in one line: where, what was expected, what was found."""
    first = error.errors()[0]
    where = _named_place(first["loc"], settings)
    if first["type"] == "extra_forbidden":
        return f"{where}: no such setting; {_suggestion(str(first['loc'][-1]))}"
    message = re.sub(r"^Value error, ", "", first["msg"])
    got = "" if first["type"] in {"missing", "value_error"} else f"; got {first['input']!r}"
    return f"{where}: {message}{got}"


def apply_change(settings: dict[str, Any], change: str) -> None:
    """Set one setting in nested tables, from a text such as "methods.dpo.beta=0.3"."""
    path, sign, text = change.partition("=")
    if not sign or not path:
        raise ConfigurationError(f"a change must look like methods.dpo.beta=0.3; got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, leaf = path.split(".")
    place = settings
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigurationError(f"{path}: {parent} is a value and has no settings of its own")
    place[leaf] = value


def _named_place(location: Sequence[int | str], settings: object) -> str:
    """Where in the file something is wrong; pydantic puts the names of union members in between."""
    parts = []
    for position, part in enumerate(location):
        if isinstance(settings, dict) and part in settings:
            settings = settings[part]
        elif position < len(location) - 1:
            continue
        parts.append(str(part))
    return ".".join(parts) or "experiment"


def _suggestion(name: str) -> str:
    """Settings whose names look like the one that does not exist."""
    near = difflib.get_close_matches(name, _setting_names(), n=2)
    return f"did you mean {' or '.join(near)}?" if near else "see docs/experiment.md"


def _setting_names() -> set[str]:
    schema = Experiment.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", {})}
