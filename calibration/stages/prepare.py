"""Stage `prepare`: the questions, and for a generated world the text to learn its facts from."""

from calibration.artifacts import Artifact, Store
from calibration.records import Question
from calibration.sources import Source
from calibration.splits import Splits
from calibration.worlds.facts import Document, World


def prepare_questions(source: Source, splits: Splits, store: Store) -> Artifact:
    """Read the questions and give each its split."""
    return store.save_rows("questions", splits.assign(source.questions()), Question)


def write_corpus(world: World, store: Store) -> Artifact:
    """Write the world's documents."""
    return store.save_rows("corpus", world.documents(), Document)
