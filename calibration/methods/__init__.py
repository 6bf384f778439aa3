"""Who teaches: each method is its own configuration, and the union below is the only list of them.

A new method is a class in a module of this package, named in `MethodConfig`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field, JsonValue

from calibration.confidence import Readout
from calibration.methods.dpo import Dpo
from calibration.methods.implicit import Implicit
from calibration.methods.rows import Outcome, Preference, TrainingSet
from calibration.records import Elicitation, Judged

__all__ = ["Dpo", "Implicit", "Method", "MethodConfig", "Outcome", "Preference", "TrainingSet"]

MethodConfig = Annotated[Dpo | Implicit, Field(discriminator="kind")]


class Method(Protocol):
    """What a run needs of a method."""

    @property
    def kind(self) -> str:
        """Its name in an experiment."""

    @property
    def elicitation(self) -> Elicitation:
        """How the trained model is asked."""

    @property
    def readouts(self) -> tuple[Readout, ...]:
        """How its confidence is read, the main way first."""

    @property
    def learns_from(self) -> Elicitation:
        """How the base model is asked for the replies that training is made of."""

    def identity(self) -> JsonValue:
        """What decides the result, as JSON."""

    def rows(self, judged: Mapping[Elicitation, Sequence[Judged]]) -> TrainingSet:
        """Training rows from judged replies of the train split, and the count of those left out."""

    def train(
        self,
        model: Path,
        data: Path,
        folder: Path,
        scratch: Path,
        seed: int,
        progress: Callable[[float, str], None],
    ) -> dict[str, float]:
        """Fit a LoRA adapter to rows on disk, write it to `folder`, and return the final figures."""
