"""Where a model's weights come from. A registry: it names the sources, and holds no behaviour."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from calibration.models.hub import Hub
from calibration.models.pocket import Pocket
from calibration.worlds.facts import Document

WeightsConfig = Annotated[Hub | Pocket, Field(discriminator="kind")]
"""Every source of weights that an experiment can name."""


class Weights(Protocol):
    """What a source of weights can do."""

    def obtain(
        self,
        documents: Sequence[Document],
        folder: Path,
        scratch: Path,
        progress: Callable[[float, str], None],
    ) -> None:
        """Fill `folder` with the model, or with a pointer to it.

        Args:
            documents: The text to learn from, for a model that is trained here.
            folder: An empty folder.
            scratch: A folder that outlives a killed process, for checkpoints.
            progress: Called with the share done and a note.
        """
