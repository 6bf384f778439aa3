"""Stage `summarise`: what can be said of one system before the report, without opening the test split."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from calibration.artifacts import Artifact, Store
from calibration.confidence import READOUTS, Readout, read_confidence
from calibration.measures import measure
from calibration.records import Judged
from calibration.report.figures import encode, reliability
from calibration.results import Curve, Row
from calibration.schema import Schema
from calibration.stages.baseline import Answered
from calibration.systems import Scores, System

SUMMARY, PICTURE = "summary.json", "reliability.png"
DPI = 90
"""Small enough for a page of the Prefect UI, which holds the picture as text."""
LOOKED_AT = frozenset(("calibration", "validation"))
"""Not learnt from, and not the test split, which the evaluation alone opens."""


class Summary(Schema):
    """One system's answers, asked in one way."""

    answers: int
    """All of them."""
    unjudged: dict[str, int]
    """How many of them have no verdict, by reason."""
    rows: tuple[Row, ...]
    """The figures of those in the calibration and validation splits, a row for each readout."""


def summarise_answers(questions: Artifact, answered: Answered, label: str, store: Store) -> Artifact:
    """Store the figures, and the reliability diagram of the first readout if there is anything to draw."""
    judged = answered.judged(questions, store)
    seen = [row for row in judged if row.question.split in LOOKED_AT]
    systems = [_system(label, readout, seen) for readout in READOUTS[answered.elicitation] if seen]
    summary = Summary(
        answers=len(judged),
        unjudged=dict(Counter(r.verdict.reason for r in judged if r.verdict.label == "unjudged")),
        rows=tuple(measure(label, system, "seen") for system in systems),
    )
    with store.draft() as draft:
        (draft / SUMMARY).write_text(summary.model_dump_json(indent=1), encoding="utf-8")
        for system in systems[:1]:
            if system.on("seen").usable.any():
                figure = reliability([_curve(system)], summary.rows)
                (draft / PICTURE).write_bytes(encode(figure, "png", DPI))
        return store.keep("summary", draft)


def load_summary(artifact: Artifact, store: Store) -> tuple[Summary, bytes | None]:
    """Read the figures back, and the picture as PNG."""
    folder = store.folder(artifact)
    picture = folder / PICTURE
    summary = Summary.model_validate_json((folder / SUMMARY).read_text(encoding="utf-8"))
    return summary, picture.read_bytes() if picture.exists() else None


def _system(name: str, readout: Readout, rows: Sequence[Judged]) -> System:
    scores = Scores(
        ids=tuple(row.question.id for row in rows),
        confidence=np.array([read_confidence(row.generation, readout) for row in rows], dtype=np.float64),
        correct=np.array([row.verdict.is_correct for row in rows], dtype=np.float64),
    )
    return System(name, readout, {"seen": scores})


def _curve(system: System) -> Curve:
    graded = system.on("seen").where(system.on("seen").usable)
    return Curve(
        system=system.name,
        readout=system.readout,
        map="none",
        confidence=tuple(graded.confidence.tolist()),
        correct=tuple(mark == 1 for mark in graded.correct.tolist()),
    )
