"""Stage `judge`: one verdict an answer."""

from collections import Counter
from collections.abc import Callable

from calibration.artifacts import Artifact, Store
from calibration.errors import JudgeError
from calibration.judges.protocol import Item, Judge
from calibration.records import Generation, Question, Verdict


async def judge_answers(
    questions: Artifact,
    generations: Artifact,
    judge: Judge,
    store: Store,
    *,
    max_unjudged: float,
    progress: Callable[[float, str], None],
) -> Artifact:
    """Judge every answer, in the order of the questions.

    Raises:
        JudgeError: More than the share `max_unjudged` of the answers stayed without a verdict; they and the
            others are stored all the same.
    """
    asked = {question.id: question for question in store.load_rows(questions, Question)}
    items = [
        Item(
            question_id=generation.question_id,
            question=asked[generation.question_id].text,
            golds=asked[generation.question_id].answers,
            answer=generation.answer,
            answer_type=asked[generation.question_id].answer_type,
        )
        for generation in store.load_rows(generations, Generation)
    ]
    verdicts = await judge.judge(items, progress=progress)
    artifact = store.save_rows("verdicts", verdicts, Verdict)
    check_judged(verdicts, max_unjudged, artifact)
    return artifact


def check_judged(verdicts: list[Verdict], max_unjudged: float, stored: Artifact) -> None:
    """Refuse to go on with answers of which too many have no verdict: what is left need not be like them."""
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.label == "unjudged")
    if reasons.total() > max_unjudged * len(verdicts):
        [(reason, count), *_] = reasons.most_common(1)
        raise JudgeError(
            f"at most {max_unjudged:.1%} of the answers may stay unjudged; {reasons.total()} of "
            f"{len(verdicts)} did, {count} of them: {reason}. All verdicts are kept ({stored.kind}/"
            f"{stored.sha256[:12]}). Run it again, or raise max_unjudged if those may be left out"
        )
