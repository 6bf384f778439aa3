"""What is stored of a stage's result, and what is found of it the next time.

Prefect does not say why it runs a stage again although there is a record of it; here it is noted.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefect.serializers import Serializer
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH
from pydantic import ValidationError

from calibration.artifacts import Artifact, Store
from calibration.errors import ArtifactError

UNREADABLE = "its record in the cache could not be read"


@dataclass
class Finding:
    """What is found of a stage's stored result."""

    record: str = ""
    """Path of its record in the cache."""
    damage: str = ""
    """What is wrong with the record, or with the artifact that it names."""


_finding: ContextVar[Finding] = ContextVar("finding")


@contextmanager
def looking() -> Iterator[Finding]:
    """Take note of what is found of one stage's stored result."""
    token = _finding.set(finding := Finding())
    try:
        yield finding
    finally:
        _finding.reset(token)


class WholeArtifact(Serializer):
    """Stores a reference as JSON, and refuses to load one whose artifact is missing or altered.

    Prefect takes a record that cannot be loaded for no record, and runs the stage again.
    """

    type: Literal["whole-artifact"] = "whole-artifact"

    def dumps(self, obj: Artifact) -> bytes:
        """The reference as JSON."""
        return obj.model_dump_json().encode()

    def loads(self, blob: bytes) -> Artifact:
        """The reference, after reading every byte it refers to."""
        artifact = reference(blob)
        if damage := Store.from_environment().damage(artifact):
            note(damage)
            raise ArtifactError(damage)
        return artifact


def reference(result: bytes | str) -> Artifact:
    """What a record holds; one that holds anything else is noted."""
    try:
        return Artifact.model_validate_json(result)
    except ValidationError:
        note(UNREADABLE)
        raise


def is_ours(record: bytes) -> bool:
    """Whether a record was written by this pipeline.

    A record names what is to load it, so that of a stranger could have a pickle loaded, and with it run code.
    """
    try:
        content = json.loads(record)
        named, result = content["metadata"]["serializer"], content["result"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(named == WholeArtifact().model_dump() and isinstance(result, str))


def check_record(path: str) -> None:
    """Remove a record on this machine that is not ours, before Prefect reads it."""
    if finding := _finding.get(None):
        finding.record = path
    place = Path(PREFECT_LOCAL_STORAGE_PATH.value()) / path
    if place.is_file() and not is_ours(place.read_bytes()):
        note(UNREADABLE)
        place.unlink(missing_ok=True)


def note(damage: str) -> None:
    """Note what is wrong with the stage's stored result."""
    if finding := _finding.get(None):
        finding.damage = damage
