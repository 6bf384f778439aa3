"""The policy a router follows, as one file, and the one call that another program makes of it."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias, TypeVar

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError, model_validator

from calibration.artifacts import file_sha256
from calibration.confidence import GRID, Readout, expected, geometric_mean, joint
from calibration.errors import DataError
from calibration.maps import CalibrationMap
from calibration.routing.certificate import Certificate, JudgeError
from calibration.routing.goals import Goal
from calibration.routing.rates import Figures, Rate
from calibration.routing.rules import Prices
from calibration.schema import Schema

PolicyFormat: TypeAlias = Literal["slm-calibration/router-policy@1"]
FORMAT: PolicyFormat = "slm-calibration/router-policy@1"
StaleFormat: TypeAlias = Literal["slm-calibration/stale-policy@1"]
STALE_FORMAT: StaleFormat = "slm-calibration/stale-policy@1"

PolicyReadout: TypeAlias = Readout | Literal["confidence"]
"""How a confidence is read: as in `calibration.confidence`, or as a number that is ready."""

Moment: TypeAlias = Annotated[
    AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC).replace(microsecond=0))
]
"""A time, in UTC and whole seconds: written so, later ones are larger as text."""


class Feasibility(Schema):
    """Whether the policy can do what was asked."""

    is_feasible: bool
    """False when nothing can be kept as asked: everything is escalated then."""
    reason: str = ""
    """Why not, in a sentence; empty when it can."""


class GroupFigures(Schema):
    """What happens to one kind of question. The intervals hold each by itself, not all at once."""

    group_by: str
    """What the questions were sorted by, such as `topic`."""
    group: str
    coverage: Rate
    """Answers that are kept, among those of the group."""
    kept_accuracy: Rate


class Digests(Schema):
    """What the policy was made from, as whoever made it identifies it."""

    data: str | None = None
    """The graded answers."""
    model: str | None = None
    """The small model's weights."""
    protocol: str | None = None
    """How it was asked and judged: prompts, decoding, judge."""


class RouterPolicy(Schema):
    """When to keep the small model's answer: the content of `router_policy.json`."""

    format: PolicyFormat = FORMAT
    """Name and version of this format; a reader refuses others."""
    system: str
    """Whose answers it routes."""
    created: Moment
    """When it was made, UTC."""
    expires: Moment
    """From when on everything is escalated, UTC."""
    readout: PolicyReadout
    """How the confidence is read from an answer; `confidence`: it comes as a ready number."""
    span_rule: str | None = None
    """Name and version of the rule that says which tokens are the answer's own, where tokens are read."""
    map: CalibrationMap
    """From the confidence to the probability that the answer is (judged) right."""
    rule: Goal
    """What was asked for."""
    threshold: float | None
    """Keep iff the probability is at least this; unset, keep nothing."""
    feasibility: Feasibility
    certificate: Certificate | None = None
    """What is guaranteed of the kept answers, for the rule `certified`; its own threshold is on the
    confidence, before the map."""
    measured_on: Literal["test", "cross-fit"]
    """Where the expected figures come from: answers that neither map nor threshold have seen, or the
    answers themselves, each fifth routed by a map and a threshold from the other four. The latter are an
    average over policies made in this way, and their intervals take each as given."""
    expected: Figures
    """What the policy does to questions like those."""
    infeasible_folds: int = Field(default=0, ge=0)
    """Of those fifths, how many escalate everything because the other four cannot show what is asked."""
    on_fit: Figures
    """What this very policy does to the answers it was made from: flattered, though hardly with two
    parameters and hundreds of answers."""
    groups: tuple[GroupFigures, ...] = ()
    """The same for kinds of questions."""
    prices: Prices
    """What was assumed."""
    n: int = Field(ge=1)
    """Graded answers that the map was fitted on, those with an unreadable confidence among them."""
    base_rate: float = Field(ge=0, le=1)
    """Accuracy of the small model on them."""
    judge: JudgeError | None = None
    """How often the judge who marked them is right; unset, it was taken at its word."""
    digests: Digests = Digests()
    fallback: Literal["escalate"] = "escalate"
    """What to do when the confidence cannot be read, or the policy is expired or infeasible."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        is_feasible, certificate = self.feasibility.is_feasible, self.certificate
        if is_feasible == bool(self.feasibility.reason):
            raise ValueError("feasibility must have a reason if, and only if, it is false")
        if not is_feasible and self.threshold is not None:
            raise ValueError(f"an infeasible policy must have no threshold; got {self.threshold}")
        if (certificate is not None) != (is_feasible and self.rule.kind == "certified"):
            raise ValueError("a policy must have a certificate if, and only if, its rule could be certified")
        if self.expires <= self.created:
            raise ValueError(f"a policy must expire after it was created; got {self.expires:%Y-%m-%dT%H:%MZ}")
        return self

    def write(self, path: Path) -> None:
        """Write the policy as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_policy(path: Path) -> RouterPolicy:
    """Read a policy that `RouterPolicy.write` wrote.

    Raises:
        DataError: The file is not there, is no JSON, is of another format, or contradicts itself.
    """
    return _read(path, RouterPolicy, FORMAT, "a router policy")


class Staleness(Schema):
    """Why a policy must not be followed any more: the content of the file beside it that says so."""

    format: StaleFormat = STALE_FORMAT
    """Name and version of this format; a reader refuses others."""
    policy: str
    """The sha256 of the policy's file, in hexadecimal: another policy put in its place is not meant."""
    since: Moment
    """When it was found out, UTC."""
    reason: str
    """What was found, in a sentence."""
    found_by: str
    """The run that measured again."""
    replaced_by: str | None = None
    """The run whose policy takes its place; unset when there is none."""

    def write(self, policy: Path) -> None:
        """Write it beside the policy, in one step."""
        draft = stale_path(policy).with_suffix(".draft")
        draft.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        draft.replace(stale_path(policy))


def stale_path(policy: Path) -> Path:
    """The file that says that a policy is stale.

    >>> stale_path(Path("router_policy.json")).name
    'router_policy.stale.json'
    """
    return policy.with_suffix(".stale.json")


def read_staleness(policy: Path) -> Staleness | None:
    """What the file beside a policy says of it; None when there is none, or it means another policy.

    Raises:
        DataError: The file cannot be read.
    """
    path = stale_path(policy)
    if not path.exists():
        return None
    found = _read(path, Staleness, STALE_FORMAT, "a note that a policy is stale")
    return found if found.policy == file_sha256(policy) else None


_Content = TypeVar("_Content", bound=Schema)


def _read(path: Path, kind: type[_Content], wanted: str, what: str) -> _Content:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} must be {what}; {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} must be JSON; {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != wanted:
        raise DataError(
            f"{path} must be of the format {wanted!r}; got {found!r}. Make the policy again with this "
            "version of slm-calibration, or install the version that made it"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the policy"
        raise DataError(f"{path}: {where}: {first['msg']}. Make the policy again") from error


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one answer, and why."""

    question: str
    keep: bool
    """True: give the small model's answer. False: ask the large model."""
    probability: float | None
    """That the answer is right; None where it cannot be said."""
    reason: str


class _Unset(Enum):
    UNSET = "not given"


_UNSET = _Unset.UNSET
_Given: TypeAlias = float | Sequence[float] | _Unset | None

_NEEDS: dict[PolicyReadout, Literal["logprobs", "stated", "confidence"]] = {
    "geometric_mean": "logprobs",
    "joint": "logprobs",
    "geometric_mean_all": "logprobs",
    "stated_greedy": "stated",
    "stated_expected": "stated",
    "confidence": "confidence",
}


@dataclass(frozen=True)
class Router:
    """Decides, answer by answer, as one policy says. Holds no state: threads may share it."""

    policy: RouterPolicy
    stale: Staleness | None = None
    """Why the policy is not followed any more: everything is escalated then."""

    @classmethod
    def load(cls, path: Path) -> "Router":
        """Read the policy from a file, and what the file beside it says of it; see `read_policy`.

        A router that runs for long learns of a policy gone stale by loading it again.
        """
        return cls(read_policy(path), read_staleness(path))

    def decide(
        self,
        question: str,
        *,
        logprobs: Sequence[float] | _Unset | None = _UNSET,
        span: Sequence[int] | None = None,
        stated: float | Sequence[float] | _Unset | None = _UNSET,
        confidence: float | _Unset | None = _UNSET,
        now: datetime | None = None,
    ) -> Decision:
        """Keep the small model's answer to a question, or escalate.

        Exactly one reading must be given, the one that the policy's readout needs; None (or nan, or an
        empty list) says that there is none, and the answer is escalated.

        Args:
            question: What the decision is about; returned with it and not looked at.
            logprobs: Natural logarithms of the sampled tokens' probabilities, each <= 0: the answer's own
                tokens, or all tokens and `span`; for `geometric_mean_all` all tokens.
            span: Positions of the answer's own tokens among `logprobs`.
            stated: The number that the model wrote, in [0, 1]; for `stated_expected` its probabilities of
                writing 0.00, 0.01, ..., 1.00.
            confidence: A ready number in [0, 1].
            now: The time, with its zone; unset, the clock's.

        Raises:
            DataError: Another reading than needed, or a value out of range: a fault of the calling
                program, never of the answer.
        """
        given = {"logprobs": logprobs, "stated": stated, "confidence": confidence}
        value = self._value(given, span)
        problem = self._problem(value, datetime.now(UTC) if now is None else now)
        if problem or value is None:
            return Decision(question, keep=False, probability=None, reason=problem)
        probability = float(self.policy.map(value))
        keep, reason = self._compared(probability)
        return Decision(question, keep=keep, probability=probability, reason=reason)

    def _problem(self, value: float | None, moment: datetime) -> str:
        """Why to fall back, in words; empty when there is no reason to."""
        policy = self.policy
        if moment.tzinfo is None:
            raise DataError(f"now must have a time zone; got {moment}. Use datetime.now(UTC)")
        if moment >= policy.expires:
            return f"the policy expired at {policy.expires:%Y-%m-%d %H:%M:%S} UTC"
        if self.stale is not None:
            return f"the policy is stale since {self.stale.since:%Y-%m-%d}: {self.stale.reason}"
        if not policy.feasibility.is_feasible:
            return f"nothing can be kept: {policy.feasibility.reason}"
        return "the confidence could not be read" if value is None else ""

    def _compared(self, probability: float) -> tuple[bool, str]:
        threshold = self.policy.threshold
        if threshold is None:
            return False, "the policy escalates everything"
        keep = probability >= threshold
        how = "reaches" if keep else "is below"
        return keep, f"probability {probability:.4g} {how} the threshold {threshold:.4g}"

    def _value(self, given: dict[str, _Given], span: Sequence[int] | None) -> float | None:
        """The confidence in [0, 1]; None when it cannot be read."""
        readout = self.policy.readout
        name = _NEEDS[readout]
        found = {key: value for key, value in given.items() if value is not _UNSET}
        if set(found) != {name}:
            raise DataError(
                f"a policy with readout {readout!r} needs {name} and no other reading; "
                f"got {' and '.join(found) or 'none'}. Give {name}=None if it could not be read"
            )
        if span is not None and readout not in ("geometric_mean", "joint"):
            raise DataError(f"span must be left out for readout {readout!r}; got {span}")
        value = found[name]
        if value is None or isinstance(value, _Unset):
            return None
        if name == "logprobs" or readout == "stated_expected":
            if not isinstance(value, Iterable):
                raise DataError(f"{name} must be a list of numbers for readout {readout!r}; got {value}")
            numbers = [float(number) for number in value]
            return _from_grid(numbers) if name == "stated" else _from_logprobs(numbers, span, readout)
        if isinstance(value, Iterable):
            raise DataError(f"{name} must be one number in [0, 1]; got {value!r}")
        return _from_number(name, float(value))


def _from_number(name: str, value: float) -> float | None:
    if math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise DataError(f"{name} must be in [0, 1] (divide percentages by 100); got {value}")
    return value


def _from_grid(grid: Sequence[float]) -> float | None:
    if len(grid) != len(GRID):
        raise DataError(f"stated must hold {len(GRID)} probabilities, of 0.00 to 1.00; got {len(grid)}")
    if any(math.isnan(probability) for probability in grid):
        return None
    if bad := [probability for probability in grid if not 0 <= probability <= 1]:
        raise DataError(f"stated must hold probabilities in [0, 1]; got {bad[0]}")
    return expected(grid)


def _from_logprobs(logprobs: Sequence[float], span: Sequence[int] | None, readout: str) -> float | None:
    if bad := [value for value in logprobs if value > 0]:
        raise DataError(f"logprobs must be natural logarithms of probabilities, each <= 0; got {bad[0]}")
    if span is not None:
        if bad_positions := [position for position in span if not 0 <= position < len(logprobs)]:
            raise DataError(
                f"span must hold positions among {len(logprobs)} logprobs; got {bad_positions[0]}"
            )
        logprobs = [logprobs[position] for position in span]
    if any(math.isnan(value) for value in logprobs):
        return None
    return joint(logprobs) if readout == "joint" else geometric_mean(logprobs)
