"""Who marks the answers. A registry: it names the judges, and holds no behaviour."""

from typing import Annotated

from pydantic import Field

from calibration.judges.compatible import OpenAiCompatible
from calibration.judges.exact import Exact
from calibration.judges.gemini import Gemini
from calibration.judges.protocol import Item, Judge
from calibration.judges.recorded import RecordedLabels

JudgeConfig = Annotated[Exact | Gemini | OpenAiCompatible | RecordedLabels, Field(discriminator="kind")]
"""Every judge that an experiment can name."""

__all__ = [
    "Exact",
    "Gemini",
    "Item",
    "Judge",
    "JudgeConfig",
    "OpenAiCompatible",
    "RecordedLabels",
]
