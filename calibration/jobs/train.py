"""Teach a model to know what it knows."""

import json
from typing import ClassVar, Literal

from calibration.artifacts import ROWS, Artifact
from calibration.jobs.work import Computation, Work
from calibration.methods import MethodConfig
from calibration.models.hub import locate

FIGURES = "training.json"


class Train(Computation):
    """One method's training of one model."""

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "peft", "trl", "accelerate")

    kind: Literal["train"] = "train"
    method: MethodConfig
    model: Artifact
    data: Artifact
    """The rows that the method made from judged answers."""
    seed: int

    def run(self, work: Work) -> Artifact:
        """Store the adapter and the last figures of the training."""
        with work.store.draft() as folder:
            figures = self.method.train(
                model=locate(work.store.folder(self.model)),
                data=work.store.folder(self.data) / ROWS,
                folder=folder,
                scratch=work.scratch,
                seed=self.seed,
                progress=work.progress,
            )
            (folder / FIGURES).write_text(json.dumps(figures, indent=1, sort_keys=True), encoding="utf-8")
            return work.store.keep("adapter", folder)
