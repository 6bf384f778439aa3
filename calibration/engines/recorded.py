"""Answers that a model gave earlier, replayed from a file with their token probabilities."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from calibration.confidence import SPAN_RULE, answer_span, read_reply
from calibration.errors import ConfigurationError
from calibration.records import Elicitation, Generation, Question
from calibration.sources.rows import FileRow, FileSchema, check_covered, key_rows, read_file

RECORDED_SPAN_RULE = "recorded@1"
"""The file names the answer's tokens; a change of `recorded_span` changes this name."""


class RecordedAnswers(FileSchema):
    """Recorded answers in a csv, jsonl or parquet file, one row a question.

    Every row is checked, also those that are not asked for. The lists may be JSON or Python lists.
    """

    kind: Literal["recorded"] = "recorded"
    elicitation: Elicitation = "plain"
    """How the model had been asked."""
    id: str | None = None
    """Column of the question ids; without one, an id is a hash of the question text."""
    question: str = "question"
    """Column of the question text."""
    response: str = "response"
    """Column of all that the model generated, without the token that ended it."""
    tokens: str = "tokens"
    """Column of the sampled tokens' texts, as a list."""
    probabilities: str | None = None
    """Column of the sampled tokens' probabilities, each in (0, 1]. Give this or `logprobs`."""
    logprobs: str | None = None
    """Column of the sampled tokens' natural log-probabilities, each <= 0."""
    answer: str | None = None
    """Column of the answer alone; without one, it is read out of the response."""
    span_tokens: str | None = None
    """Column of the answer's own tokens, as a list; without one, the answer span is found by the rule that
    live answers use."""
    stated: str | None = None
    """Column of the confidence the model stated, in [0, 1]; without one, it is read out of the response."""
    missing: tuple[str, ...] = ()
    """What stands in `answer` or `stated` where nothing could be read, beside an empty cell."""
    pad_token: str | None = Field(default="<pad>", min_length=1)
    """Token that fills up the lists behind the answer; it is no part of it."""
    end_token: str | None = Field(default=None, min_length=1)
    """Token that ends a whole answer; an answer that does not end with it counts as cut off. Without one,
    none does."""

    @model_validator(mode="after")
    def _one_kind_of_probability(self) -> Self:
        if (self.probabilities is None) == (self.logprobs is None):
            raise ValueError(
                "exactly one of `probabilities` and `logprobs` must name a column; got "
                f"{self.probabilities!r} and {self.logprobs!r}. Remove one or add one"
            )
        return self

    @property
    def elicitations(self) -> tuple[Elicitation, ...]:
        """The one way in which the model had been asked."""
        return (self.elicitation,)

    def check(self, questions: Sequence[Question], elicitations: Sequence[Elicitation]) -> None:
        """Raise what `generate` would raise."""
        for elicitation in elicitations:
            self._check_elicitation(elicitation)
        self._answers(questions)

    def generate(
        self,
        questions: Sequence[Question],
        elicitation: Elicitation,
        *,
        model: Path | None,  # noqa: ARG002 - what every engine is given
        adapter: Path | None,
        progress: Callable[[float, str], None],
    ) -> list[Generation]:
        """The recorded answer to each question, in the order of the questions.

        Args:
            questions: Found in the file by id, or by the hash of their text.
            elicitation: Must be the one of the recording.
            model: Not used: the answers are there.
            adapter: Must be None.
            progress: Called once, at the end.

        Raises:
            ConfigurationError: Something is asked that was not recorded.
            DataError: The file or a row cannot be used, or a question has no row.
        """
        self._check_elicitation(elicitation)
        if adapter is not None:
            raise ConfigurationError(
                f"engine recorded must be asked without an adapter; got {adapter.name!r}. Its answers are "
                "those of the model as it was; use another engine for a trained one"
            )
        answers = self._answers(questions)
        progress(1.0, f"{len(answers)} recorded answers")
        return answers

    def _check_elicitation(self, elicitation: Elicitation) -> None:
        if elicitation != self.elicitation:
            raise ConfigurationError(
                f"engine recorded must be asked as it was recorded, {self.elicitation!r}; got "
                f"{elicitation!r}. Change engine.elicitation or the model's elicitations"
            )

    def _answers(self, questions: Sequence[Question]) -> list[Generation]:
        optional = (self.id, self.probabilities, self.logprobs, self.answer, self.span_tokens, self.stated)
        columns = [self.id or self.question, self.response, self.tokens, *filter(None, optional)]
        keyed = key_rows(read_file(self.path, columns), question=self.question, id_column=self.id)
        recorded = {key: self._generation(key, row) for key, row in keyed.items()}
        check_covered(self.path, "an answer", recorded, [(q.id, q.text) for q in questions])
        return [recorded[question.id] for question in questions]

    def _generation(self, key: str, row: FileRow) -> Generation:
        tokens, logprobs = self._tokens(row)
        answer, span = self._answer(row, tokens)
        is_whole = self.end_token is None or tokens[-1:] == [self.end_token]
        return Generation(
            question_id=key,
            elicitation=self.elicitation,
            text=row.raw(self.response),
            answer=answer,
            token_ids=(),
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            span=span,
            span_rule=RECORDED_SPAN_RULE if self.span_tokens else SPAN_RULE,
            finish="stop" if is_whole else "length",
            stated=self._stated(row) if self.elicitation == "stated" else None,
        )

    def _tokens(self, row: FileRow) -> tuple[list[str], list[float]]:
        """The sampled tokens without padding, and their log-probabilities."""
        column = self.probabilities or self.logprobs or ""
        tokens, numbers = _texts(row, self.tokens), row.values(column)
        if len(tokens) != len(numbers):
            must = f"hold one number for each of the {len(tokens)} tokens"
            raise row.error(column, must, f"{len(numbers)} numbers", "Record both lists from the same answer")
        kept = tokens.index(self.pad_token) if self.pad_token in tokens else len(tokens)
        if odd := [token for token in tokens[kept:] if token != self.pad_token]:
            must = f"hold {self.pad_token!r} at the end only"
            raise row.error(self.tokens, must, odd[0], "Set pad_token to the token that pads")
        return tokens[:kept], [self._logprob(row, column, number) for number in numbers[:kept]]

    def _logprob(self, row: FileRow, column: str, number: object) -> float:
        value = _number(number)
        if self.logprobs is None and 0 < value <= 1:
            return math.log(value)
        if self.logprobs is not None and -math.inf < value <= 0:
            return value
        must = "hold probabilities in (0, 1]" if self.logprobs is None else "hold log-probabilities <= 0"
        raise row.error(column, must, number, "Correct the number, or check `probabilities` and `logprobs`")

    def _answer(self, row: FileRow, tokens: Sequence[str]) -> tuple[str, tuple[int, ...]]:
        """The answer and the positions of its tokens; ("", ()) where none could be read."""
        text = row.raw(self.response)
        reply = read_reply(text, self.elicitation)
        answer, start = reply.answer, reply.start
        if self.answer is not None:
            answer = row.text(self.answer)
            start = text.find(answer)
        if not answer or answer in self.missing:
            return "", ()
        if self.span_tokens is not None:
            span = recorded_span(tokens, named := _texts(row, self.span_tokens))
            if span is None:
                must = "be a run of the tokens that were sampled"
                raise row.error(self.span_tokens, must, named, "Correct it, or empty the answer's cell")
            return answer, span
        if start < 0:
            remedy = "Name the column of the answer's own tokens in span_tokens"
            raise row.error(self.answer or "", "be a part of the response", answer, remedy)
        if not "".join(tokens).startswith(text):
            must = "join up to the response"
            raise row.error(self.tokens, must, "".join(tokens), "Name the answer's own tokens in span_tokens")
        return answer, answer_span(tokens, start, start + len(answer))

    def _stated(self, row: FileRow) -> float | None:
        if self.stated is None:
            return read_reply(row.raw(self.response), "stated").stated
        text = row.text(self.stated)
        if not text or text in self.missing:
            return None
        if 0 <= (value := _number(text)) <= 1:
            return value
        raise row.error(self.stated, "be a number in [0, 1]", text, "Correct it, or add it to `missing`")


def recorded_span(tokens: Sequence[str], named: Sequence[str]) -> tuple[int, ...] | None:
    r"""Positions of the first run of tokens that spells out the named ones; None when there is none.

    White space is not compared and is never part of a span. The run starts and ends with whole tokens.
    Characters that are neither letters nor digits may stand in the run without being named, because
    extraction drops markup and separators; their tokens are left out of the span.

    >>> recorded_span(["Frank", " Morris", " ", "\n", "<eos>"], ["Frank", "Morris"])
    (0, 1)
    >>> recorded_span(["2", ":", "0", "0", " AM"], ["2", "0", "0", "AM"])
    (0, 2, 3, 4)
    """
    spelled = [
        (char, position) for position, token in enumerate(tokens) for char in token if not char.isspace()
    ]
    wanted = "".join("".join(named).split())
    if not wanted:
        return ()
    for start, (_, position) in enumerate(spelled):
        starts_token = start == 0 or spelled[start - 1][1] != position
        if starts_token and (found := _spell(spelled[start:], wanted)):
            return found
    return None


def _spell(spelled: Sequence[tuple[str, int]], wanted: str) -> tuple[int, ...] | None:
    """The positions that spell `wanted` from the first character on."""
    found: dict[int, None] = {}
    rest = iter(wanted)
    due = next(rest)
    for index, (char, position) in enumerate(spelled):
        if char == due:
            found[position] = None
            due = next(rest, "")
            if not due:
                after = spelled[index + 1] if index + 1 < len(spelled) else ("", -1)
                return None if after[1] == position and after[0].isalnum() else tuple(found)
        elif char.isalnum() or not found:
            return None
    return None


def _texts(row: FileRow, column: str) -> list[str]:
    values = row.values(column)
    if odd := [value for value in values if not isinstance(value, str)]:
        raise row.error(column, "be a list of texts", odd[0], "Write every token in quotes")
    return [str(value) for value in values]


def _number(value: object) -> float:
    """A number; NaN, which no check lets through, for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
