"""Stage `rank`: the cells of a sweep by what they do to validation questions."""

from collections.abc import Collection

from calibration.artifacts import Artifact, Store
from calibration.confidence import READOUTS, Readout
from calibration.evaluation import read_system
from calibration.records import Question, Split
from calibration.report.words import number
from calibration.stages.baseline import Baseline
from calibration.stages.evaluate import EVALUATION, TrainedSystem, load_evaluation
from calibration.variants import CHOOSING, Cell, Sweep, rank

SWEEP = "sweep.json"
SEEN: tuple[Split, ...] = ("calibration", CHOOSING)
"""The splits that cells are asked: maps are fitted on one, and the choice is made on the other."""


def questions_of(questions: Artifact, splits: Collection[Split], store: Store) -> Artifact:
    """The questions of some splits."""
    rows = [row for row in store.load_rows(questions, Question) if row.split in splits]
    return store.save_rows("questions", rows, Question)


def rank_cells(
    baseline: Baseline,
    target: str,
    readout: Readout,
    asked: Artifact,
    cells: tuple[TrainedSystem, ...],
    failed: dict[str, str],
    seed: int,
    store: Store,
) -> Artifact:
    """Rank the cells and choose one; answers to other questions than those asked of the cells stay closed."""
    answered = next(a for a in baseline.of(target).answered if readout in READOUTS[a.elicitation])
    before = [row for row in answered.judged(baseline.questions, store) if row.question.split in SEEN]
    found = rank(
        read_system("base", readout, before, needed=CHOOSING),
        {
            cell.name: read_system(
                cell.name, cell.readouts[0], cell.answered.judged(asked, store), needed=CHOOSING
            )
            for cell in cells
        },
        failed,
        seed=seed,
    )
    with store.draft() as draft:
        (draft / SWEEP).write_text(found.model_dump_json(indent=1), encoding="utf-8")
        return store.keep("sweep", draft)


def load_sweep(sweep: Artifact, store: Store) -> Sweep:
    """Read what was found."""
    return Sweep.model_validate_json((store.folder(sweep) / SWEEP).read_text(encoding="utf-8"))


def note_sweep(evaluation: Artifact, sweep: Sweep, store: Store) -> Artifact:
    """The evaluation of the chosen cell, with how it was chosen among its notes."""
    whole = load_evaluation(evaluation, store)
    with store.draft() as draft:
        noted = whole.model_copy(update={"notes": (*whole.notes, *notes(sweep))})
        (draft / EVALUATION).write_text(noted.model_dump_json(indent=1), encoding="utf-8")
        return store.keep("evaluation", draft)


def notes(sweep: Sweep) -> tuple[str, ...]:
    """How the choice was made, a sentence for all and one for each cell."""
    opened = f"opened for {sweep.chosen} alone" if sweep.chosen else "opened for none of them"
    first = (
        f"{len(sweep.cells)} cells were tried and ranked on {sweep.base.n} validation questions, by the "
        f"Brier skill behind a map; the test questions were {opened}."
    )
    return (first, *(f"{_shown(cell)}." for cell in (sweep.base, *sweep.cells)))


def _shown(cell: Cell) -> str:
    skill, accuracy, auroc = map(number, (cell.skill, cell.accuracy, cell.auroc))
    figures = f"Brier skill {skill}, accuracy {accuracy}, AUROC {auroc}" if cell.n else ""
    return ": ".join(filter(None, (cell.name, figures, cell.problem)))
