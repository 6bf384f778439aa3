"""The base of every setting and record: frozen, strict, and described by its own source."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, JsonValue


class Schema(BaseModel):
    """A frozen value that refuses unknown fields and takes field docstrings as descriptions.

    The docstring under a field is its only description: the source, the JSON Schema, the generated
    reference and the form in the Prefect UI all show it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version decides the result of work done with this value."""

    def identity(self) -> JsonValue:
        """What decides the result of work done with this value, as JSON.

        Cache keys are made from it. A setting that points at outside content (a file) overrides this
        to name the content instead of the place; whatever holds the setting asks it.
        """
        dumped = self.model_dump(mode="json")
        return {name: _identity(getattr(self, name), told) for name, told in dumped.items()}


def _identity(value: object, dumped: JsonValue) -> JsonValue:
    """A field's value as JSON, with the identity of each setting in it in place of its fields."""
    if isinstance(value, Schema):
        return value.identity()
    if isinstance(value, Mapping) and isinstance(dumped, dict):
        return {
            name: _identity(inner, told)
            for inner, (name, told) in zip(value.values(), dumped.items(), strict=True)
        }
    if isinstance(value, list | tuple) and isinstance(dumped, list):
        return [_identity(inner, told) for inner, told in zip(value, dumped, strict=True)]
    return dumped
