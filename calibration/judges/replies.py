"""What a language model is to reply, and how the reply becomes a label."""

import hashlib
import json
from typing import Any

from calibration.records import Label

PARSER = "reply@1"
"""Changes with `read_verdict`; verdicts read by another version are read again from the kept replies."""

_LABELS: dict[str, Label] = {
    "CORRECT": "correct",
    "INCORRECT": "incorrect",
    "NOT_ATTEMPTED": "not_attempted",
}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "extracted": {"type": ["string", "null"]},
        "verdict": {"type": "string", "enum": list(_LABELS)},
    },
    "required": ["extracted", "verdict"],
    "additionalProperties": False,
}
"""The extracted answer comes first: reading before judging is the little reasoning that it takes."""

SCHEMA_SHA256 = hashlib.sha256(json.dumps(SCHEMA).encode()).hexdigest()


def read_verdict(text: str) -> tuple[Label, str | None]:
    r"""The label and the extracted answer of a reply.

    The reply must be one JSON object whose verdict is one of the three words, letter by letter. A code
    fence around it and further keys are let pass; nothing is guessed from a word or a letter.

    Raises:
        ValueError: It is anything else; says what.

    >>> read_verdict('{"extracted": "Ann", "verdict": "CORRECT"}')
    ('correct', 'Ann')
    >>> read_verdict("CORRECT")
    Traceback (most recent call last):
    ValueError: no JSON object
    """
    bare = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        reply = json.loads(bare, object_pairs_hook=_unambiguous)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("no JSON object") from None
    said = reply.get("verdict") if isinstance(reply, dict) else None
    label = _LABELS.get(said) if isinstance(said, str) else None
    if label is None:
        raise ValueError(f"no verdict in it: {str(said)[:40]!r}")
    extracted = reply.get("extracted")
    return label, extracted if isinstance(extracted, str) else None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a key twice")
    return dict(pairs)
