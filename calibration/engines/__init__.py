"""Who answers. A registry: it names the engines, and holds no behaviour."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from calibration.engines.hf import Hf
from calibration.engines.recorded import RecordedAnswers
from calibration.engines.vllm import Vllm
from calibration.records import Elicitation, Generation, Question

EngineConfig = Annotated[Hf | RecordedAnswers | Vllm, Field(discriminator="kind")]
"""Every engine that an experiment can name."""


class Engine(Protocol):
    """What an engine can do."""

    @property
    def elicitations(self) -> tuple[Elicitation, ...]:
        """The ways of asking that it can serve."""

    def check(self, questions: Sequence[Question], elicitations: Sequence[Elicitation]) -> None:
        """Raise what can be known to be wrong before anything is run."""

    def generate(
        self,
        questions: Sequence[Question],
        elicitation: Elicitation,
        *,
        model: Path | None,
        adapter: Path | None,
        progress: Callable[[float, str], None],
    ) -> list[Generation]:
        """One generation a question, in order."""
