"""Stage `judge`."""

from calibration.artifacts import Artifact, Store
from calibration.judges import JudgeConfig
from calibration.stages import judging
from tasks.progress import reporting
from tasks.stage import stage


@stage("calibration.stages.judging", libraries=("rapidfuzz",), name="judge {label}")
async def judge(
    questions: Artifact, generations: Artifact, by: JudgeConfig, max_unjudged: float, label: str
) -> Artifact:
    """A verdict on every answer."""
    async with reporting(f"judge {label}") as progress:
        return await judging.judge_answers(
            questions,
            generations,
            by,
            Store.from_environment(),
            max_unjudged=max_unjudged,
            progress=progress,
        )
