"""What a person fills in to begin a run: a shipped experiment, and any setting of it that is to differ.

The form is made of `Experiment` itself. Every setting may be left open, and is then as the experiment has
it; tables by name become lists, as no form can ask for a table; kinds become tabs. So a new setting or
plug-in shows up here without an edit, under the description that stands below its field.
"""

import re
import types
from dataclasses import dataclass
from functools import cache, reduce
from importlib.resources import files
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Union, cast, get_args, get_origin

from annotated_types import MinLen
from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    create_model,
    model_serializer,
)
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema

from calibration.backends import BackendConfig
from calibration.config import Experiment, Name, explain
from calibration.errors import ConfigurationError
from calibration.schema import Schema
from deployments.checks import BACKENDS, backend_of

FOLDER = Path(str(files("deployments") / "experiments"))
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.toml"))
KIND = "Which kind this is; the tab above chooses it."
LISTED = "An empty list leaves them as the experiment has them; otherwise only what is listed is left."
OPEN = "open"
"""The tag of a choice that was not made."""

WORDS = {
    **{word.lower(): word for word in ("AI", "DPO", "GiB", "GPU", "ID", "KL", "LLM", "LM", "LoRA", "NQ")},
    **{word.lower(): word for word in ("Modal", "SimpleQA", "SLM", "TriviaQA", "URL", "USD", "vLLM")},
    "hf": "Transformers",
}
"""Words of a title that are not simply written in lower case."""


def title_of(name: str) -> str:
    """The heading of a setting or of a kind of settings.

    >>> title_of("max_usd"), title_of("slm_cost"), title_of("NqOpen"), title_of("entities_per_topic")
    ('Max USD', 'SLM cost', 'NQ open', 'Entities per topic')
    """
    words = [word.lower() for word in re.split(r"_|(?<=[a-z])(?=[A-Z][a-z])", name)]
    title = " ".join(WORDS.get(word, word) for word in words)
    return title if words[0] in WORDS else title[0].upper() + title[1:]


def _shown(schema: JsonDict) -> None:
    """What a form can show: no default "open", a choice of one instead of a constant, names of choices."""
    for field in cast("dict[str, Any]", schema["properties"]).values():
        if field.get("default", ...) is None:
            del field["default"]
        choices = field.get("anyOf", [])
        for choice in choices:
            if "$ref" not in choice:
                choice.setdefault("title", str(choice.get("const", choice["type"])))
        for part in (field, *choices):
            if "const" in part:
                part["enum"] = [part.pop("const")]
            if "exclusiveMinimum" in part:  # browsers know minima only
                part["minimum"] = part["exclusiveMinimum"]


def _lenient(schema: JsonDict) -> None:
    """Let everything pass: what is wrong with a choice is found by the rules of that choice, see `Tabs`."""
    _shown(schema)
    del schema["additionalProperties"]
    schema["properties"] = {
        name: {key: value for key, value in field.items() if key != "pattern"}
        for name, field in cast("dict[str, JsonDict]", schema["properties"]).items()
    }


@dataclass(frozen=True)
class Tabs:
    """Makes forms choose by tabs and check by kind.

    "Not valid under any of the given schemas" is all that a mere union would say of what is wrong in it. So
    the first choice lets everything pass, and a rule for each kind says what is wrong.
    """

    kinds: tuple[str, ...] = ()

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The choices, and their rules beside them."""
        schema = handler(core)
        choices = schema.pop("oneOf", None) or schema.pop("anyOf")
        rules = choices[1:]
        if self.kinds:
            rules = [_if_kind(kind, rule) for kind, rule in zip(self.kinds, rules, strict=True)]
            rules.append({"properties": {"kind": {"enum": list(self.kinds)}}})
        return schema | {"anyOf": choices, "allOf": rules}


def _if_kind(kind: str, rule: JsonSchemaValue) -> JsonSchemaValue:
    return {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": rule}


class Form(Schema):
    """Settings, each of which may be left open."""

    model_config = ConfigDict(json_schema_extra=_shown)

    @model_serializer(mode="wrap")
    def _without_open(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class Named(Form):
    """An entry of what is a table by name in an experiment."""

    name: Name = Field(title="Name")
    """What it is called; a name that the experiment knows changes what it has there."""


class Unchanged(Form):
    """As in the experiment."""

    model_config = ConfigDict(title="Unchanged", json_schema_extra=_lenient)


class NamedUnchanged(Named):
    """As in the experiment."""

    model_config = ConfigDict(title="Unchanged", json_schema_extra=_lenient)


class Usual(Form):
    """On this machine, with half of its cores for each job."""

    model_config = ConfigDict(title="As usual", json_schema_extra=_lenient)


class NamedValue(Named):
    """A single value by name."""

    model_config = ConfigDict(title="Value")

    value: Any


@cache
def form_of(
    settings: type[Schema], base: type[Form] = Form, title: str | None = None, without: str | None = None
) -> type[Form]:
    """A form with the settings of this kind, each of which may be left open, but for one."""
    fields: dict[str, Any] = {
        name: _field(name, field) for name, field in settings.model_fields.items() if name != without
    }
    if base is Named and "kind" in fields:
        usual = base.model_fields["name"]
        fields["name"] = (Name, Field(default=_kind(settings), title="Name", description=usual.description))
    made: type[Form] = create_model(
        f"{base.__name__}{settings.__name__}",
        __base__=base,
        __doc__=(settings.__doc__ or "").split("\n\n")[0],
        __module__=__name__,
        __cls_kwargs__={"title": title or title_of(settings.__name__)},
        **fields,
    )
    return made


def _field(name: str, field: FieldInfo) -> tuple[Any, Any]:
    if name == "kind":
        return field.annotation, Field(default=field.default, title="Kind", description=KIND)
    text = f"{field.description} {LISTED}" if get_origin(field.annotation) is dict else field.description
    kind: Any = field.rebuild_annotation()
    left_open: Any = SkipJsonSchema[None]  # type: ignore[misc]
    return _open(kind) | left_open, Field(default=None, title=title_of(name), description=text)


def _open(kind: Any) -> Any:  # noqa: ANN401 - a type as it is written in an annotation
    """The type that a form has where an experiment has this one."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner, rules = _open(parts[0]), [rule for rule in parts[1:] if not _is_for_tables(rule)]
        return Annotated[(inner, *rules)] if rules else inner
    if origin in (Union, types.UnionType):
        return _choice([part for part in parts if part is not types.NoneType])
    if origin is dict:
        return tuple[_entry(parts[1]), ...]  # type: ignore[misc]
    if origin is tuple:
        return tuple[_open(parts[0]), ...]  # type: ignore[misc]
    return Annotated[Unchanged | form_of(kind), Tabs()] if _is_settings(kind) else kind


def _choice(parts: list[Any]) -> Any:  # noqa: ANN401
    """One of several types; of kinds of settings, none may be chosen, too."""
    if len(parts) == 1:
        return _open(parts[0])
    if not all(map(_is_settings, parts)):
        return reduce(or_, map(_open, parts))
    return _tabs([form_of(part) for part in parts], Unchanged)


def _entry(kind: Any) -> Any:  # noqa: ANN401
    """The type of an entry in a list of what is a table by name."""
    parts = get_args(get_args(kind)[0]) if get_origin(kind) is Annotated else (kind,)
    if not all(map(_is_settings, parts)):
        return create_model(
            "NamedValue",
            __base__=NamedValue,
            __doc__=NamedValue.__doc__,
            value=(kind, Field(title="Value", description="What it is.")),
        )
    forms = [form_of(part, Named) for part in parts]
    return forms[0] if len(forms) == 1 else _tabs(forms, NamedUnchanged)


def _tabs(forms: list[type[Form]], first: type[Form]) -> Any:  # noqa: ANN401
    tagged = {OPEN: first} | {_kind(form): form for form in forms}
    union = reduce(or_, (Annotated[form, Tag(tag)] for tag, form in tagged.items()))
    return Annotated[union, Discriminator(_tag), Tabs(tuple(tagged)[1:])]


def _kind(settings: type[Schema]) -> str:
    return str(settings.model_fields["kind"].default)


def _tag(value: object) -> str:
    kind = value.get("kind", OPEN) if isinstance(value, dict) else getattr(value, "kind", OPEN)
    return str(kind)


def _is_settings(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Schema)


def _is_for_tables(rule: object) -> bool:
    """Whether a rule is about what a form does not have: a discriminator, a least length."""
    return isinstance(rule, MinLen) or (isinstance(rule, FieldInfo) and rule.discriminator is not None)


def filled_in(given: object, form: object) -> Any:  # noqa: ANN401 - what a TOML file can hold
    """What an experiment file says, with all that was filled in taken from the form.

    Settings of another kind than the given ones begin anew. Of what is listed by name, only the listed is
    left, each entry over the given one of that name. An empty list counts as left open.
    """
    if isinstance(form, NamedValue):
        return form.value
    if isinstance(form, Schema):
        chosen = {name: value for name, value in form if not _is_open(value) and not _is_name(form, name)}
        base = given if isinstance(given, dict) else {}
        if "kind" in chosen and base.get("kind") != chosen["kind"]:
            base = {}
        return base | {name: filled_in(base.get(name), value) for name, value in chosen.items()}
    if isinstance(form, tuple) and isinstance(form[0], Named):
        base = given if isinstance(given, dict) else {}
        return {entry.name: filled_in(base.get(entry.name), entry) for entry in form}
    return list(form) if isinstance(form, tuple) else form


def _is_open(value: object) -> bool:
    return value is None or value == () or isinstance(value, Unchanged)


def _is_name(form: Schema, field: str) -> bool:
    return isinstance(form, Named) and field == "name"


Changes: Any = form_of(Experiment, title="Changes")
"""What is to differ from the experiment."""

Measuring: Any = form_of(Experiment, title="Changes", without="methods")
"""The same for what trains nothing."""

Place: Any = _tabs([form_of(kind) for kind in BACKENDS.values()], Usual)
"""Where heavy work runs."""


def changed(experiment: Experiment, changes: Form) -> Experiment:
    """The experiment that was asked for.

    Args:
        experiment: A given one.
        changes: What is to differ from it.

    Raises:
        ConfigurationError: With the changes it can be none; names the setting.
    """
    settings = filled_in(experiment.model_dump(mode="json"), changes)
    try:
        return Experiment.model_validate(settings)
    except ValidationError as error:
        said = explain(error, settings, Experiment, "docs/experiment.md")
        raise ConfigurationError(f"{experiment.name}: {said}") from error


def place_of(form: Form) -> BackendConfig:
    """The backend that was asked for."""
    return backend_of({"kind": "local"} | filled_in({}, form), "on")
