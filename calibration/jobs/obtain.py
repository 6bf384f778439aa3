"""Get a model: pretrain the embedded one, or point at one that exists."""

from typing import Literal

from calibration.artifacts import Artifact
from calibration.jobs.work import Computation, Work
from calibration.models import WeightsConfig
from calibration.worlds.facts import Document


class Obtain(Computation):
    """Fill a model folder."""

    kind: Literal["obtain"] = "obtain"
    weights: WeightsConfig
    corpus: Artifact | None = None
    """Documents to pretrain on, for a model that is trained here."""

    def run(self, work: Work) -> Artifact:
        """Store the model."""
        documents = work.store.load_rows(self.corpus, Document) if self.corpus else []
        with work.store.draft() as folder:
            self.weights.obtain(documents, folder, work.scratch, work.progress)
            return work.store.keep("model", folder)
