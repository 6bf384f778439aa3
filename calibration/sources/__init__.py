"""Where questions come from. A registry: it names the sources, and holds no behaviour."""

from typing import Annotated, Protocol

from pydantic import Field

from calibration.records import Question
from calibration.sources.hub import NqOpen, TriviaQA
from calibration.sources.mixture import Mixture
from calibration.sources.simpleqa import SimpleQA
from calibration.sources.table import Table
from calibration.worlds.facts import World

SourceConfig = Annotated[World | Table | SimpleQA | TriviaQA | NqOpen | Mixture, Field(discriminator="kind")]
"""Every source of questions that an experiment can name."""


class Source(Protocol):
    """What a source can do."""

    def questions(self) -> list[Question]:
        """Every question, with the default split."""
