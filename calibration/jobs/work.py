"""What a job is given to work with, and how its work is named."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from calibration.artifacts import Store
from calibration.fingerprint import code_digest, library_versions
from calibration.schema import Schema

Progress = Callable[[float, str], None]
"""Takes the share done, in [0, 1], and a short note."""
Threads = Annotated[int, Field(ge=1, le=256)]


class Computation(Schema):
    """Work whose numbers depend on how it is computed, and not on where."""

    threads: Threads = 1
    """CPU threads. Sums in floating point depend on it in their last digits."""


@dataclass(frozen=True)
class Work:
    """The surroundings of a running job."""

    store: Store
    scratch: Path
    """Checkpoints go here; the folder is the same when the job is started again."""
    progress: Progress


def work_key(inputs: Mapping[str, object], modules: Iterable[str] = (), libraries: Iterable[str] = ()) -> str:
    """Hex digest of all that decides a result: inputs, the code that runs, the libraries it runs on.

    The code is the named modules, the module of every plug-in among the inputs, and what they import. The
    libraries are the named ones and those that a plug-in names in its `libraries`.
    """
    plugins = {kind for value in inputs.values() for kind in plugins_in(value)}
    named = {*libraries}.union(*(plugin.libraries for plugin in plugins))
    parts = {
        "inputs": {name: _identity(value) for name, value in inputs.items()},
        "code": code_digest({*modules, *(plugin.__module__ for plugin in plugins)}),
        "libraries": library_versions(named),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plugins_in(value: object) -> set[type[Schema]]:
    """The classes of the settings found in a value, however deep."""
    if isinstance(value, Schema):
        inner = [getattr(value, name) for name in type(value).model_fields]
        return {type(value)}.union(*map(plugins_in, inner))
    if isinstance(value, Mapping):
        return set().union(*map(plugins_in, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(plugins_in, value))
    return set()


def _identity(value: object) -> object:
    if isinstance(value, Schema):
        return value.identity()
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(
        f"a stage's input must be a setting, a reference or a plain value; got {type(value).__name__}"
    )
