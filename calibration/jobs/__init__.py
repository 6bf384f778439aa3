"""Work that may run elsewhere. A registry: it names the jobs, and holds no behaviour.

A job is a frozen value that says everything about one piece of heavy work; its `run` is a pure function
of the store's content. The backend decides in which process, or on which machine, it runs.
"""

from typing import Annotated

from pydantic import Field

from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.jobs.train import Train

Job = Annotated[Obtain | Infer | Train, Field(discriminator="kind")]
"""Every kind of work that can be sent to a backend."""
