"""Who decides when the model and the rules disagree, and what that costs."""

import asyncio
import json

import pytest
from pydantic import TypeAdapter

from calibration.errors import ConfigurationError
from calibration.judges import Cascade, Exact, Gemini, GeminiBatch, Item, JudgeConfig, OpenAiCompatible
from tests.judges.gemini_server import MODEL, Say

RIGHT, WRONG, NONE = "CORRECT", "INCORRECT", "NOT_ATTEMPTED"


def item(answer="gold", key="q"):
    return Item(question_id=key, question="What?", golds=("gold",), answer=answer)


def says(*verdicts):
    """The model's votes on every case, one after the other; None is a blocked reply."""

    def plan(seen):
        verdict = verdicts[min(seen.time, len(verdicts)) - 1]
        said = json.dumps({"extracted": f"read {seen.time}", "verdict": verdict})
        return Say(text=said) if verdict else Say(finish="SAFETY", parts=[])

    return plan


def cascade(items, progress=lambda f, n: None, **settings):
    model = Gemini(timeout_seconds=5.0, retry_seconds=0.01)
    return asyncio.run(Cascade(**({"model": model} | settings)).judge(items, progress=progress))


@pytest.mark.parametrize(
    ("answer", "votes", "label", "asked", "reason"),
    [
        ("gold", [RIGHT], "correct", 1, ""),
        ("other", [WRONG], "incorrect", 1, ""),
        # Not attempting is not correct either: no disagreement.
        ("other", [NONE], "not_attempted", 1, ""),
        ("gold", [WRONG, WRONG], "incorrect", 2, "both votes, against exact: identical"),
        ("other", [RIGHT, RIGHT], "correct", 2, "both votes, against exact: other words"),
        ("gold", [WRONG, RIGHT], "correct", 2, "second vote, with exact: identical, against the first"),
        ("other", [RIGHT, WRONG], "incorrect", 2, "second vote, with exact: other words, against the first"),
        (
            "other",
            [RIGHT, NONE],
            "not_attempted",
            2,
            "second vote, with exact: other words, against the first",
        ),
        ("gold", [NONE, WRONG], "not_attempted", 2, "both votes, against exact: identical"),
        # An outage of the second vote takes no verdict away; without a first there is none.
        (
            "other",
            [RIGHT, None],
            "correct",
            3,
            "against exact: other words; no second vote (blocked: SAFETY)",
        ),
        ("gold", [None], "unjudged", 2, "blocked: SAFETY"),
    ],
)
def test_the_majority_of_two_votes_and_the_rules_decides(serve, answer, votes, label, asked, reason):
    server = serve(says(*votes))
    (verdict,) = cascade([item(answer)])
    assert (verdict.label, verdict.reason, server.count) == (label, reason, asked)
    # The same again is in the ledger, both votes of it.
    assert cascade([item(answer)]) == [verdict]
    assert server.count == asked


def test_a_verdict_names_both_judges_and_the_vote_that_decided(serve):
    serve(says(WRONG, RIGHT))
    (verdict,) = cascade([item()])
    assert (
        verdict.judge == f"cascade@1(exact@1, gemini:{MODEL}:simpleqa@1)" == Cascade(model=Gemini()).version
    )
    assert (verdict.extracted, verdict.model_version, verdict.question_id) == ("read 2", MODEL, "q")


def test_only_disagreements_are_asked_twice_and_everything_keeps_its_place(serve, items):
    def plan(seen):
        number = int(seen.case["question"].split()[-1][:-1])
        return says(RIGHT, WRONG)(seen) if number % 10 == 0 else None

    server = serve(plan)
    notes = []
    verdicts = cascade(items(60), lambda f, n: notes.append((f, n)))
    assert [v.label for v in verdicts] == ["correct" if n % 2 else "incorrect" for n in range(60)]
    assert [v.question_id for v in verdicts] == [f"q{n}" for n in range(60)]
    assert sum(v.reason.startswith("second vote") for v in verdicts) == 6
    assert server.count == 66
    assert notes[-1] == (1.0, "60 answers, 60 asked, 6 asked twice")
    shares = [share for share, _ in notes]
    assert shares == sorted(shares)


def test_the_first_vote_is_geminis_own_verdict(serve, judge):
    server = serve(says(RIGHT))
    alone = judge([item()])
    (verdict,) = cascade([item()])
    assert server.count == 1
    assert verdict.label == alone[0].label


@pytest.mark.parametrize(
    ("gold", "answer", "asked"),
    [
        ("gold", "gold", 0),
        ("The Gold", "gold!", 0),
        ("1874", "12 March 1874", 0),
        ("1,482", "1482", 0),
        ("Marie Curie", "Marie Sklodowska Curie", 1),
        ("gold", "silver", 1),
        ("gold", "dunno", 1),
    ],
)
def test_trusted_rules_spare_the_model_where_they_are_sure_that_it_is_right(serve, gold, answer, asked):
    server = serve()
    one = Item(question_id="q", question="Who or when?", golds=(gold,), answer=answer)
    (verdict,) = cascade([one], trust_exact=True)
    assert min(server.count, 1) == asked
    if not asked:
        assert (verdict.label, verdict.model_version) == ("correct", None)
        assert verdict.reason.startswith("exact: ")
    cascade([one])
    assert server.count >= 1


@pytest.mark.parametrize("answer", ["", ":", "Thought process:"])
def test_an_answer_that_says_nothing_costs_nothing(serve, answer):
    server = serve()
    assert cascade([item(answer)])[0].label == "not_attempted"
    assert server.count == 0


def test_nothing_is_judged_without_an_accepted_answer_and_nothing_of_nothing(serve):
    server = serve()
    nothing = Item(question_id="q", question="?", golds=(), answer="x")
    assert cascade([nothing])[0].label == "unjudged"
    assert cascade([]) == []
    assert server.count == 0


def test_what_it_is_names_both_judges_and_not_how_they_run(serve):
    plain = Cascade(model=Gemini())
    assert plain.identity() == Cascade(model=Gemini(concurrency=3)).identity()
    # By which way Gemini is asked changes no verdict.
    assert plain.identity() == Cascade(model=GeminiBatch()).identity()
    others = [
        Cascade(model=Gemini(), trust_exact=True),
        Cascade(model=Gemini(max_output_tokens=300)),
        Cascade(model=OpenAiCompatible(model=MODEL)),
    ]
    assert len({json.dumps(one.identity(), sort_keys=True) for one in [plain, *others]}) == 4
    assert len({plain.version, others[0].version, others[2].version}) == 3


def test_an_experiment_names_it_by_kind():
    config = {"kind": "cascade", "model": {"kind": "openai", "model": "m", "key_variable": ""}}
    judge = TypeAdapter(JudgeConfig).validate_python(config)
    assert isinstance(judge, Cascade)
    assert (judge.first, type(judge.model)) == (Exact(), OpenAiCompatible)


def test_what_is_wrong_with_the_model_is_known_before_anything_is_sent(serve):
    server = serve()
    with pytest.raises(ConfigurationError, match="shut down"):
        Cascade(model=Gemini(model="gemini-2.0-flash")).check([])
    assert server.count == 0
