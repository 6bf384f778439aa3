"""Stage `prepare`."""

from calibration.artifacts import Artifact, Store
from calibration.sources import SourceConfig
from calibration.splits import Splits
from calibration.stages import prepare
from calibration.worlds.facts import World
from tasks.stage import stage


@stage("calibration.stages.prepare", name="prepare questions")
async def prepare_questions(source: SourceConfig, splits: Splits) -> Artifact:
    """The questions, each with its split."""
    return prepare.prepare_questions(source, splits, Store.from_environment())


@stage("calibration.stages.prepare", name="prepare corpus")
async def write_corpus(world: World) -> Artifact:
    """The text that a generated world is learnt from."""
    return prepare.write_corpus(world, Store.from_environment())
