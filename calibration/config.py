"""An experiment: one TOML file, one flow parameter, everything that decides the numbers."""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from calibration.auditing import AuditFile, error_rate
from calibration.confidence import READOUTS, Readout
from calibration.drift import Allowance
from calibration.engines import EngineConfig
from calibration.engines.hf import Hf
from calibration.errors import ConfigurationError, DataError
from calibration.jobs.work import Threads
from calibration.judges import JudgeConfig
from calibration.methods import MethodConfig
from calibration.metrics.noise import JudgeAudit
from calibration.models import WeightsConfig
from calibration.records import Elicitation
from calibration.routing.goals import CostOptimal, Goal
from calibration.routing.rules import Prices
from calibration.schema import Schema
from calibration.shards import Shards
from calibration.sources import SourceConfig
from calibration.sources.formats import shown
from calibration.splits import Splits
from calibration.worlds.facts import World

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
"""A name that can stand in file names, tables and commands."""

RESERVED = frozenset({"base", "constant"})


AUDITED = "audited"
"""A setting of a method that stands for what the audit of the judge says."""


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
    """What its runs and reports are called."""
    seed: int = Field(default=0, ge=0)
    """Seeds training and the intervals' resampling."""
    threads: Threads = 1
    """CPU threads of each job. Sums in floating point depend on it in their last digits, so it belongs to the
    experiment: the numbers are then the same wherever the jobs run. More of them help models that are not
    small; several jobs run side by side as it is."""
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
    judge_audit: AuditFile | None = None
    """A person's audit of that judge, as `slm-calibration judge-audit read` writes it. The report then has
    the figures without the judge's errors as well."""
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
    drift: Allowance = Allowance()
    """What a later re-measurement lets pass before it asks for a new map, or for training."""

    @property
    def target_name(self) -> str:
        """The model that is taught and compared."""
        return self.target or next(iter(self.models))

    def read_audit(self) -> JudgeAudit | None:
        """What the audit says of the judge; None without one.

        Raises:
            DataError: It cannot be used, or is of another judge.
        """
        return self.judge_audit.read(self.judge.version) if self.judge_audit else None

    def informed(self) -> Self:
        """The experiment with the judge's error rate wherever a method's setting is "audited".

        Raises:
            DataError: The audit cannot be used.
        """
        audit = self.read_audit()
        if audit is None or self.judge_audit is None:
            return self
        found = error_rate(audit)
        if found >= 0.5 and any(map(audited_settings, self.methods.values())):
            raise DataError(
                f"the judge must be wrong in less than half of the answers to learn from its marks; "
                f"{self.judge_audit.path} finds {found:.3f}. Take another judge"
            )
        methods = {
            name: method.model_copy(update=dict.fromkeys(audited_settings(method), found))
            for name, method in self.methods.items()
        }
        return self.model_copy(update={"methods": methods})

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
        for name, method in self.methods.items():
            if self.judge_audit is None and (settings := audited_settings(method)):
                raise ValueError(
                    f"methods.{name}.{settings[0]} = {AUDITED!r} must have a [judge_audit]; give its path"
                )
        if not isinstance(self.data, World):
            for name, model in self.models.items():
                if model.weights is not None and model.weights.kind == "pocket":
                    raise ValueError(
                        f"model {name!r} is trained on a world's text; data.kind must be 'world'"
                    )
        return self


def audited_settings(method: MethodConfig) -> list[str]:
    """The settings of a method that wait for an audit."""
    return [name for name in type(method).model_fields if getattr(method, name) == AUDITED]


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
    return checked(settings, str(path))


def changed(experiment: Experiment, changes: Sequence[str]) -> Experiment:
    """An experiment with some settings changed; the changes are written as for `load_experiment`.

    Raises:
        ConfigurationError: They make what no experiment can be.
    """
    settings = experiment.model_dump(mode="json")
    for change in changes:
        apply_change(settings, change)
    return checked(settings, experiment.name)


def checked(settings: dict[str, Any], name: str) -> Experiment:
    """The experiment that some settings make.

    Args:
        settings: In nested tables.
        name: What an error calls them.

    Raises:
        ConfigurationError: They make none.
    """
    try:
        return TypeAdapter(Experiment).validate_python(settings)
    except ValidationError as error:
        problem = explain(error, settings, Experiment, see="docs/experiment.md")
        raise ConfigurationError(f"{name}: {problem}") from error


def explain(error: ValidationError, settings: object, of: type[Schema], see: str) -> str:
    """The first thing wrong, in one line: where, what was expected, what was found.

    Args:
        error: What checking the settings raised.
        settings: The settings, in nested tables.
        of: What they were to be.
        see: Where its settings are described, for a name that is like none of them.
    """
    first = error.errors()[0]
    where = _named_place(first["loc"], settings)
    if first["type"] == "extra_forbidden":
        near = _suggestion(str(first["loc"][-1]), of)
        return " ".join(f"{where}: no such setting; {near or f'see {see}'}".split())
    message = re.sub(r"^Value error, ", "", first["msg"])
    got = "" if first["type"] in {"missing", "value_error"} else f"; got {shown(first['input'])}"
    return " ".join(f"{where}: {message}{got}".removeprefix(": ").split())


def apply_change(settings: dict[str, Any], change: str) -> None:
    """Set one setting in nested tables, from a text such as "methods.dpo.beta=0.3"."""
    path, sign, text = change.partition("=")
    if not sign or not all(path.split(".")):
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
    return ".".join(parts)


def _suggestion(name: str, of: type[Schema]) -> str:
    """Settings whose names look like the one that does not exist, or where else it does; "" without any."""
    places: dict[str, list[str]] = {}
    for path in _setting_paths(of):
        places.setdefault(path.rpartition(".")[2], []).append(path)
    near = places[name] if name in places else difflib.get_close_matches(name, places, n=2)
    return f"did you mean {' or '.join(near[:2])}?" if near else ""


def _setting_paths(of: type[Schema]) -> list[str]:
    """Every setting as it is written in a change, such as "methods.NAME.beta", the outer ones first."""
    schema = of.model_json_schema()
    todo: list[tuple[str, Any]] = [("", schema)]
    paths: dict[str, None] = {}
    for path, part in todo:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        found = {path + name: inner for name, inner in part.get("properties", {}).items()}
        paths |= dict.fromkeys(found)
        todo += [(f"{name}.", inner) for name, inner in found.items()]
        todo += [(path, inner) for union in ("anyOf", "oneOf") for inner in part.get(union, [])]
        tables = [part.get("additionalProperties"), *part.get("patternProperties", {}).values()]
        todo += [(f"{path}NAME.", inner) for inner in tables if isinstance(inner, dict)]
    return list(paths)
