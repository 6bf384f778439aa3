"""Stage `judge`: one verdict an answer."""

from calibration.artifacts import Artifact, Store
from calibration.judges.protocol import Item, Judge
from calibration.records import Generation, Question, Verdict


async def judge_answers(questions: Artifact, generations: Artifact, judge: Judge, store: Store) -> Artifact:
    """Judge every answer, in the order of the questions."""
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
    return store.save_rows("verdicts", await judge.judge(items), Verdict)
