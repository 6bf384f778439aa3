"""Who marks the answers. A registry: it names the judges, and holds no behaviour."""

from typing import Annotated

from pydantic import Field

from calibration.judges.cascade import Cascade
from calibration.judges.compatible import OpenAiCompatible
from calibration.judges.exact import Exact
from calibration.judges.gemini import Gemini
from calibration.judges.gemini_batch import GeminiBatch
from calibration.judges.protocol import Item, Judge
from calibration.judges.recorded import RecordedLabels

JudgeConfig = Annotated[
    Exact | Gemini | GeminiBatch | OpenAiCompatible | RecordedLabels | Cascade, Field(discriminator="kind")
]
"""Every judge that an experiment can name."""

__all__ = [
    "Cascade",
    "Exact",
    "Gemini",
    "GeminiBatch",
    "Item",
    "Judge",
    "JudgeConfig",
    "OpenAiCompatible",
    "RecordedLabels",
]
