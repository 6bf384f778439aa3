import asyncio

import pytest

from calibration.artifacts import ROWS, Store
from calibration.errors import JudgeError
from calibration.judges import RecordedLabels
from calibration.records import Generation, Question, Verdict, read_rows
from calibration.stages.judging import judge_answers


def ignore(fraction, note):
    pass


@pytest.fixture
def judged(tmp_path):
    """Judge 100 answers of which so many have no label; return the stored verdicts."""

    def run(unjudged, max_unjudged):
        store = Store(tmp_path / "store")
        questions = [Question(id=f"q{n}", text=f"What is {n}?", answers=("x",)) for n in range(100)]
        generations = [
            Generation(
                question_id=question.id,
                elicitation="plain",
                text="x",
                answer="x",
                token_ids=(),
                tokens=("x",),
                logprobs=(-0.1,),
                span=(0,),
                span_rule="s@1",
                finish="stop",
            )
            for question in questions
        ]
        labels = tmp_path / "labels.csv"
        labels.write_text("n,label\n" + "".join(f"q{n},{'' if n < unjudged else 1}\n" for n in range(100)))
        return store.load_rows(
            asyncio.run(
                judge_answers(
                    store.save_rows("questions", questions, Question),
                    store.save_rows("generations", generations, Generation),
                    RecordedLabels(path=labels, id="n"),
                    store,
                    max_unjudged=max_unjudged,
                    progress=ignore,
                )
            ),
            Verdict,
        )

    return run


def test_a_few_answers_may_stay_unjudged_and_are_never_wrong(judged):
    verdicts = judged(unjudged=1, max_unjudged=0.01)
    assert [v.is_correct for v in verdicts] == [None] + [True] * 99


def test_too_many_unjudged_fail_the_stage_with_every_verdict_kept(judged, tmp_path):
    with pytest.raises(JudgeError, match=r"at most 1\.0% .* 2 of 100 did, 1 of them: row 2 has no label"):
        judged(unjudged=2, max_unjudged=0.01)
    [stored] = (tmp_path / "store" / "artifacts" / "verdicts").iterdir()
    assert len(read_rows(stored / ROWS, Verdict)) == 100
    assert len(judged(unjudged=2, max_unjudged=0.02)) == 100
