"""The audit of a table: confidences and marks that anybody has, with or without a second system."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, model_validator

from calibration.artifacts import file_sha256
from calibration.errors import DataError
from calibration.evaluation import Study, assess
from calibration.judges.recorded import LABELS
from calibration.measures import audited_judge, judge_row
from calibration.metrics.errors import BIN_SIZE
from calibration.metrics.noise import JudgeAudit
from calibration.metrics.outcomes import FloatArray
from calibration.results import Evaluation, JudgeRow
from calibration.routing.goals import CostOptimal, Goal
from calibration.routing.policy import Digests, RouterPolicy
from calibration.routing.rules import Prices
from calibration.schema import Schema
from calibration.sources.formats import shown
from calibration.sources.rows import FileRow, key_rows, read_file
from calibration.systems import Scores, System

NOT_GIVEN = "(not given)"
"""The group of a question whose cell is empty."""
SMALLEST_GROUP = 20
"""Groups with fewer answers are taken together: of one alone nothing could be said."""
POOLED = f"(groups of fewer than {SMALLEST_GROUP})"
"""What they are called together."""
LONGEST_NAME = 80
"""Characters of a system's name."""


def _name(name: str) -> str:
    """A name that can stand in a table, a sentence and the name of a folder."""
    is_plain = name.isprintable() and name == name.strip() and not set(name) & {"/", "\\"}
    if not is_plain or not 0 < len(name) <= LONGEST_NAME:
        raise ValueError(
            f"a system's name must be 1 to {LONGEST_NAME} printable characters, none of them / or \\, and no "
            f"space at its ends; got {shown(name)}. Give it another name"
        )
    if name == "constant":
        raise ValueError(
            "a system must not be called 'constant', as a row of reference is. Give it another name"
        )
    return name


def _moment(value: object) -> datetime:
    """A date or a time, also as ISO 8601 text; where it names no zone, in that of this computer."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime.combine(moment, time())
        if isinstance(moment, datetime):
            moment = moment if moment.tzinfo else moment.astimezone()
            if moment.astimezone(UTC) <= datetime.now(UTC):
                return moment
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        "must be a date or a time that is past, such as 2026-01-31 or 2026-01-31T09:30+01:00; "
        f"got {shown(str(value))}"
    )


class Columns(Schema):
    """Which column of a table says what."""

    confidence: str = Field(default="confidence", min_length=1)
    """Confidence of each answer, in [0, 1]; an empty cell is a confidence that could not be read.
    Unset, the column is `confidence`."""
    correct: str = Field(default="correct", min_length=1)
    """1, 0, true, false, correct, incorrect or not_attempted; an empty cell is an answer nobody judged.
    Unset, the column is `correct`."""
    id: str | None = Field(default=None, min_length=1)
    """What identifies the question; needed where a second table is given. Unset, questions are numbered."""
    group: str | None = Field(default=None, min_length=1)
    """What kind of question it is, such as its topic; an empty cell is a group of its own, "(not given)".
    Groups of fewer than 20 answers are taken together."""
    truth: str | None = Field(default=None, min_length=1)
    """A person's marks of some answers, written as `correct`, to correct for the judge's own errors; empty
    elsewhere. Draw these answers at random from all, or at random within each mark (say 200 marked right
    and 200 marked wrong); never because two judges disagree or an answer looks odd."""
    missing: tuple[str, ...] = ()
    """What stands in `confidence` where none could be read, and in `correct` and `truth` where there is no
    mark, beside an empty cell."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        first: dict[str, str] = {}
        for role in ("confidence", "correct", "id", "group", "truth"):
            column = getattr(self, role)
            if column is not None and (other := first.setdefault(column, role)) != role:
                raise ValueError(f"{other} and {role} must be different columns; both are {column!r}")
        return self


@dataclass(frozen=True)
class Answers:
    """One table, read."""

    path: Path
    columns: Columns
    """Those that were read."""
    rows: tuple[FileRow, ...]
    scores: Scores
    truth: FloatArray
    """Shape [n], a person's marks; nan where nobody audited."""


def read_answers(path: Path, columns: Columns) -> Answers:
    """Read a csv, jsonl or parquet file.

    Without a column of ids, questions are numbered from 1 in the order of the file: the same table has
    the same ids in every format, and so falls into the same folds of a cross-fit.

    Raises:
        DataError: The file or a row cannot be used; the message names file, row, column and value.
    """
    optional = filter(None, (columns.id, columns.group, columns.truth))
    return _answers(path, read_file(path, [columns.confidence, columns.correct, *optional]), columns)


def _answers(path: Path, rows: Sequence[FileRow], columns: Columns) -> Answers:
    if columns.id is None:
        keyed = {f"question {number}": row for number, row in enumerate(rows, start=1)}
    else:
        keyed = key_rows(rows, question=columns.id, id_column=columns.id)
    kinds = {name: _groups(rows, name) for name in filter(None, [columns.group])}
    scores = Scores(
        ids=tuple(keyed),
        confidence=np.array([_confidence(row, columns) for row in rows]),
        correct=np.array([_mark(row, columns.correct, columns.missing) for row in rows]),
        kinds=kinds,
    )
    marks = [_mark(row, columns.truth, columns.missing) if columns.truth else math.nan for row in rows]
    answers = Answers(path, columns, tuple(rows), scores, np.array(marks))
    _check_enough(answers)
    return answers


def _groups(rows: Sequence[FileRow], column: str) -> tuple[str, ...]:
    """The group of each row, small ones taken together where there are several."""
    labels = [row.text(column) or NOT_GIVEN for row in rows]
    small = {label for label, n in Counter(labels).items() if n < SMALLEST_GROUP}
    return tuple(POOLED if len(small) > 1 and label in small else label for label in labels)


def _confidence(row: FileRow, columns: Columns) -> float:
    text = row.text(columns.confidence)
    if not text or text in columns.missing:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if 0 <= value <= 1:
        return value
    remedy = (
        "Divide percentages by 100; where no confidence could be read, leave the cell empty or list its "
        "text in `missing`"
    )
    raise row.error(columns.confidence, "be a number in [0, 1]", text, remedy)


def _mark(row: FileRow, column: str, missing: Sequence[str]) -> float:
    text = row.text(column)
    label = LABELS.get(text.casefold())
    # A mark stays one though the same text is listed as missing: 0 may stand for no confidence.
    if label == "unjudged" or (label is None and text in missing):
        return math.nan
    if label is None:
        must = "be 1, 0, true, false, correct, incorrect, not_attempted or empty"
        remedy = "Correct the mark; where nobody judged, leave the cell empty or list its text in `missing`"
        raise row.error(column, must, text, remedy)
    return float(label == "correct")


def _check_enough(answers: Answers) -> None:
    """Refuse a table of which nothing can be said."""
    usable, columns = answers.scores.usable, answers.columns
    n, right = int(usable.sum()), int(answers.scores.correct[usable].sum())
    what = f"{columns.confidence!r} and {columns.correct!r}"
    if n < BIN_SIZE:
        raise DataError(
            f"{answers.path} must hold at least {BIN_SIZE} rows with both {what}, one bin; got {n} of "
            f"{len(usable)} rows, the last is row {answers.rows[-1].number}. Add rows"
        )
    if right in (0, n):
        first = answers.rows[int(usable.argmax())]
        raise DataError(
            f"{answers.path} must hold right and wrong answers; all {n} are alike: row {first.number} has "
            f"{columns.correct!r} {first.text(columns.correct)!r}, and so has every other. Check the column"
        )


def check_paired(one: Answers, other: Answers) -> None:
    """Refuse two tables that are not about the same questions."""
    for answers, against in ((one, other), (other, one)):
        known = set(against.scores.ids)
        for key, row in zip(answers.scores.ids, answers.rows, strict=True):
            if key not in known:
                raise DataError(
                    f"{answers.path} row {row.number}: question {key!r} must stand in {against.path} as "
                    "well, to be compared. Check the column of the ids, or leave the question out of both"
                )


def check_apart(test: Answers, known: Answers) -> None:
    """Refuse two tables that share a question."""
    rows = dict(zip(known.scores.ids, known.rows, strict=True))
    both = [(key, row) for key, row in zip(test.scores.ids, test.rows, strict=True) if key in rows]
    if both:
        key, row = both[0]
        raise DataError(
            f"{known.path} must hold other questions than {test.path}; {len(both)} stand in both, the first "
            f"is {key!r}: row {rows[key].number} and row {row.number}. Leave them out of one of the two"
        )


class Source(Schema):
    """One system's table."""

    path: Path
    """A csv, jsonl or parquet file, one row an answer."""
    columns: Columns = Columns()
    """Which column says what."""


class Audit(Schema):
    """What to audit."""

    name: Annotated[str, AfterValidator(_name)]
    """What the audited system is called."""
    table: Source
    """Its answers."""
    base: Source | None = None
    """The system that it is compared with, on the same questions; their groups are those of `table`. Without
    a column `truth`, or with an empty one, this system's marks are taken as true."""
    base_name: Annotated[str, AfterValidator(_name)] = "base"
    """What that one is called."""
    calibration: Path | None = None
    """Answers of the audited system to other questions, in the same columns, that maps and thresholds are
    fitted on. Unset, maps are cross-fitted on the answers themselves."""
    measured: Annotated[AwareDatetime, BeforeValidator(_moment)] = Field(
        default_factory=lambda: datetime.now(UTC)
    )
    """When the answers were given; the policy's lifetime begins there. Unset, now."""
    prices: Prices = Prices()
    """What answers cost and are worth."""
    router: Goal = CostOptimal()
    """What the router's policy aims at."""
    seed: int = Field(default=0, ge=0)
    """Seeds the intervals."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        columns = self.table.columns
        if self.base is not None and None in (columns.id, self.base.columns.id):
            raise ValueError("base needs a column of ids (`id`), for each answer to meet its counterpart")
        if self.base is not None and self.name in ("base", self.base_name):
            raise ValueError(
                f"name must be another than 'base' and than base_name; got {self.name!r} beside "
                f"{self.base_name!r}. Give the system another name"
            )
        if self.calibration is not None and columns.id is None:
            raise ValueError(
                "calibration needs a column of ids (`id`), to show that it holds other questions than table"
            )
        return self

    def run(self, remark: Callable[[str], None] = lambda _: None) -> Evaluation:
        """Compute every number that the tables allow.

        Args:
            remark: Told what is special about these tables, a sentence at a time; the evaluation's notes
                hold it as well.

        Raises:
            DataError: A table or a row cannot be used, the two tables are about different questions, or
                the calibration's about the same.
        """
        test = read_answers(self.table.path, self.table.columns)
        base = self._base_answers(test)
        study = self._study(test, base)
        judges = self._judges(study, test, base)
        evaluation = assess(
            study,
            prices=self.prices,
            router=self.router,
            measured=self.measured,
            seed=self.seed,
            judges={name: audit for name, (audit, _) in judges.items()},
        )
        policies = {name: self._signed(name, policy) for name, policy in evaluation.policies.items()}
        remarks = tuple(self._remarks(test, base, policies.get(self.name)))
        for sentence in remarks:
            remark(sentence)
        return evaluation.model_copy(
            update={
                "recommended": self.name,
                "judge": tuple(row for _, row in judges.values()),
                "policies": policies,
                "notes": (*remarks, *evaluation.notes),
            }
        )

    def _base_answers(self, test: Answers) -> Answers | None:
        """The base's answers, sorted into the groups of the audited table, which are the questions' own."""
        if self.base is None:
            return None
        path, columns = self.base.path, self.base.columns.model_copy(update={"group": None})
        rows = read_file(path, [columns.confidence, columns.correct, *filter(None, [columns.id])])
        if columns.truth and not any(row.text(columns.truth) for row in rows):
            columns = columns.model_copy(update={"truth": None})
        base = _answers(path, rows, columns)
        self._check_other(self.base)
        check_paired(test, base)
        place = {key: number for number, key in enumerate(test.scores.ids)}
        order = [place[key] for key in base.scores.ids]
        kinds = {name: tuple(labels[n] for n in order) for name, labels in test.scores.kinds.items()}
        return replace(base, scores=replace(base.scores, kinds=kinds))

    def _check_other(self, base: Source) -> None:
        """Refuse to compare a table with itself; two columns of one table are two systems."""
        one, other = self.table.columns, base.columns
        is_same = (one.confidence, one.correct) == (other.confidence, other.correct)
        if is_same and file_sha256(base.path) == file_sha256(self.table.path):
            raise DataError(
                f"{base.path} must hold other answers than {self.table.path}; both hold the same. Give "
                "another file or another column"
            )

    def _study(self, test: Answers, base: Answers | None) -> Study:
        columns = self.table.columns
        splits = {"test": test.scores}
        if self.calibration is not None:
            splits["calibration"] = self._known(self.calibration, test).scores
        audited = System(self.name, columns.confidence, splits)
        if self.base is None or base is None:
            return Study(model=self.name, base=audited, kinds=columns.group, held_out=False)
        before = System(self.base_name, self.base.columns.confidence, {"test": base.scores})
        return Study(
            model=self.base_name, base=before, trained=(audited,), kinds=columns.group, held_out=False
        )

    def _known(self, path: Path, test: Answers) -> Answers:
        """The answers to fit on, which must be about other questions."""
        known = read_answers(path, self.table.columns.model_copy(update={"group": None, "truth": None}))
        if file_sha256(path) == file_sha256(test.path):
            raise DataError(
                f"{path} must hold other questions than {test.path}; both hold the same. Leave it out, and "
                "maps are cross-fitted"
            )
        check_apart(test, known)
        return known

    def _judges(
        self, study: Study, test: Answers, base: Answers | None
    ) -> dict[str, tuple[JudgeAudit, JudgeRow]]:
        """What is known of the judge of each system that has one audited: one's judge is not the other's."""
        pairs = ((study.trained[0] if study.trained else study.base, test), (study.base, base))
        return {
            system.name: self._judge(system, answers, answers.columns.truth)
            for system, answers in pairs
            if answers is not None and answers.columns.truth
        }

    def _judge(self, system: System, answers: Answers, column: str) -> tuple[JudgeAudit, JudgeRow]:
        try:
            return audited_judge(system, answers.truth), judge_row(system, answers.truth, self.seed)
        except DataError as error:
            n = int((answers.scores.judged & ~np.isnan(answers.truth)).sum())
            raise DataError(
                f"{answers.path} column {column!r} with {n} marks of judged answers: {error}, or leave the "
                "column out"
            ) from error

    def _signed(self, system: str, policy: RouterPolicy) -> RouterPolicy:
        """A policy that names the table it was made from; its confidence comes as a ready number."""
        made_from = self.calibration or self.table.path
        if self.base is not None and system == self.base_name:
            made_from = self.base.path
        digests = Digests(data=file_sha256(made_from))
        return policy.model_copy(update={"digests": digests, "readout": "confidence"})

    def _remarks(self, test: Answers, base: Answers | None, policy: RouterPolicy | None) -> Iterator[str]:
        """What is special about these tables."""
        yield from _on_groups(test)
        yield from _on_truth(self.name, test)
        if base is not None:
            yield from _on_truth(self.base_name, base)
            if test.columns.truth and not base.columns.truth:
                yield (
                    f"{base.path} holds no person's marks: the judge's are taken as true, and the guarantees "
                    f"of {self.base_name} are not corrected for its errors."
                )
            if test.columns.truth or base.columns.truth:
                yield "Verdicts compare the marks as they are, not corrected for the judge."
        if policy is not None and policy.expires <= datetime.now(UTC):
            yield (
                f"The answers were given on {self.measured:%Y-%m-%d}: the policy for a router expired on "
                f"{policy.expires:%Y-%m-%d}, and whoever follows it escalates everything. Measure again."
            )


def _on_groups(answers: Answers) -> Iterator[str]:
    """What became of small groups."""
    column = answers.columns.group
    if column is None or POOLED not in answers.scores.kinds[column]:
        return
    counts = Counter(row.text(column) or NOT_GIVEN for row in answers.rows)
    small = sum(n < SMALLEST_GROUP for n in counts.values())
    what = f"the {small} groups" if small == len(counts) else f"{small} of the {len(counts)} groups"
    so = "nothing is said by group" if small == len(counts) else "they are taken together"
    yield f"Each of {what} of {column!r} holds fewer than {SMALLEST_GROUP} answers: {so}."


def _on_truth(name: str, answers: Answers) -> Iterator[str]:
    """How a person's marks are used, and which cannot be."""
    column, is_audited = answers.columns.truth, ~np.isnan(answers.truth)
    if column is None:
        return
    used = int((is_audited & answers.scores.judged).sum())
    yield (
        f"Figures of {name} corrected for its judge rest on {used} marks in {column!r}, taken to be drawn at "
        "random, or at random within each of the judge's marks."
    )
    if unused := int(is_audited.sum()) - used:
        yield (
            f"{unused} more marks in {column!r} stand beside answers that the judge did not mark, and are "
            "not used."
        )
