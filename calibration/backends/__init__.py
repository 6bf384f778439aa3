"""Where heavy work runs. A registry: it names the backends, and holds no behaviour."""

from typing import Annotated, Protocol

from pydantic import Field

from calibration.artifacts import Artifact, Store
from calibration.backends.local import Local
from calibration.backends.modal import Modal
from calibration.jobs import Job
from calibration.jobs.work import Progress

BackendConfig = Annotated[Local | Modal, Field(discriminator="kind")]
"""Every backend that a run can be given."""


class Backend(Protocol):
    """What a backend can do."""

    async def check(self, store: Store) -> None:
        """Raise what can be known to be wrong before anything is run, let alone paid for."""

    async def forget(self, key: str, store: Store) -> None:
        """Forget what came of this work, so that `run` does it again; what is under way goes on."""

    async def run(self, job: Job, key: str, store: Store, progress: Progress) -> Artifact:
        """Do the work and return what it stored.

        Args:
            job: What to do.
            key: Names the work; the same work started again continues from its checkpoints.
            store: Where inputs are and the result goes.
            progress: Called with the share done and a note.

        Raises:
            CalibrationError: The job refused its inputs.
            JobError: It ended without a result.
        """
