"""What a language model is shown of an answer, and the key under which its verdict is kept."""

import hashlib
import json
import re
import unicodedata
from dataclasses import asdict, dataclass

from calibration.judges.protocol import Item
from calibration.records import Label
from calibration.schema import Schema

_LONGEST = 2000
"""Characters of an answer that are shown; what follows them decides nothing about a short answer."""

_OWN_CONFIDENCE = re.compile(
    r"^[\s*_#>-]*confidence(?: level| score)?[\s*_]*[:=][\s*_\[]*[0-9][0-9.,]*\s*%?[\s*_\].]*$",
    re.IGNORECASE | re.MULTILINE,
)
"""A line in which the answering model states its confidence: not to be judged, and it must not sway."""

_OPENER = re.compile(
    r"(?:thought process|reasoning|solution|(?:final )?answer|let(?:'|\u2019)?s (?:solve this|think)[^.:!]*)"
    r"[\s.:!]*",
    re.IGNORECASE,
)
"""Beginnings without an answer: to one of them alone even large judges say "correct" (arXiv:2507.08794)."""


@dataclass(frozen=True)
class Case:
    """An answer as it is shown and keyed: the same for every system, run and order of accepted answers."""

    question: str
    accepted_answers: tuple[str, ...]
    answer: str

    @classmethod
    def of(cls, item: Item) -> "Case":
        """Clean texts, accepted answers in alphabetical order, the answer cut at 2000 characters."""
        accepted = {_clean(gold) for gold in item.golds} - {""}
        answer = _clean(_OWN_CONFIDENCE.sub("", item.answer))
        return cls(_clean(item.question), tuple(sorted(accepted)), answer[:_LONGEST])


class JudgeProtocol(Schema):
    """Everything that decides what a language model says of a case."""

    template: str
    """Name and version of the prompt."""
    template_sha256: str
    schema_sha256: str
    """Digest of the JSON schema that the reply must follow."""
    provider: str
    model: str
    """The model asked for; the one that answered stands in the verdict."""
    thinking: str
    """How much it may think first; "default" where the model is left to its own."""
    max_output_tokens: int

    @property
    def version(self) -> str:
        """Who judges, with its version.

        >>> JudgeProtocol(template="simpleqa@1", template_sha256="", schema_sha256="", provider="gemini",
        ...     model="gemini-3.5-flash-lite", thinking="minimal", max_output_tokens=256).version
        'gemini:gemini-3.5-flash-lite:simpleqa@1'
        """
        return f"{self.provider}:{self.model}:{self.template}"

    def key(self, case: Case, vote: int = 0) -> str:
        """Hex digest of the protocol and the case; another vote on the same case has a key of its own."""
        parts = {"v": 1, "protocol": self.model_dump(), "vote": vote, "case": asdict(case)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def guard(case: Case) -> tuple[Label, str] | None:
    """The label and the reason of a case that no model need be asked about; None for any other.

    >>> guard(Case("Who?", ("Ann",), "Thought process:"))
    ('not_attempted', 'no answer in it')
    >>> guard(Case("Who?", ("Ann",), "Ann"))
    """
    if not case.accepted_answers:
        return "unjudged", "no accepted answer to compare with"
    if case.answer in case.accepted_answers:
        return None  # what is accepted may look like nothing, such as "!"
    if not any(character.isalnum() for character in case.answer):
        return "not_attempted", "no answer in it"
    return ("not_attempted", "no answer in it") if _OPENER.fullmatch(case.answer) else None


def _clean(text: str) -> str:
    """Composed characters, no lone surrogates, no white space around."""
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode()).strip()
