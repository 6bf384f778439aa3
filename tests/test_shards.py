"""Shards: cut and merged they are what one job makes, on a real small model."""

import numpy as np
import pytest

from calibration.artifacts import Store
from calibration.engines.hf import Hf
from calibration.errors import ArtifactError
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.jobs.work import Work, work_key
from calibration.models.hub import Hub
from calibration.records import ROW_GROUP, Generation, Question
from calibration.shards import cut, merge
from calibration.splits import Splits
from calibration.worlds.facts import World

COUNT = 42
SIZES = {1: 100, 3: 14, 7: 6}
"""The size that makes so many shards of them."""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def questions(store):
    every = World(entities_per_topic=24, pool_size=6).questions()[:COUNT]
    return store.save_rows("questions", every, Question)


def generated(number, rng):
    count = int(rng.integers(1, 10))
    return Generation(
        question_id=f"q{number}",
        elicitation="stated",
        text="é" * count,
        answer="é" * (count % 3),
        token_ids=tuple(rng.integers(1000, size=count).tolist()),
        tokens=("é",) * count,
        logprobs=tuple((-rng.random(count)).tolist()),
        span=(0,),
        span_rule="rule@1",
        finish="stop",
        stated=0.5 if count % 2 else None,
        stated_grid=(0.001,) * 101 if count == 4 else (),
    )


def ask(questions, store, model, size, engine):
    """What every shard is answered, one after the other, merged."""
    shards = cut(questions, size, store)
    parts = [
        Infer(questions=shard, engine=engine, elicitation="stated", model=model).run(
            Work(store, store.root, lambda fraction, note: None)
        )
        for shard in shards
    ]
    return len(shards), merge(shards, parts, store)


@pytest.fixture
def model(random_model, store):
    return Obtain(weights=Hub(repo=str(random_model))).run(
        Work(store, store.root, lambda fraction, note: None)
    )


def test_one_three_and_seven_shards_give_the_same_records_to_the_bit(store, questions, model):
    # One question a batch: nothing else is in the sums. Equal artifacts have equal bytes.
    made = [ask(questions, store, model, size, Hf(batch_size=1, max_tokens=12)) for size in SIZES.values()]
    assert [count for count, _ in made] == list(SIZES)
    assert len({artifact.sha256 for _, artifact in made}) == 1


def test_in_batches_the_same_tokens_come_whatever_the_shards(store, questions, model):
    whole, *cuts = (
        store.load_rows(ask(questions, store, model, size, Hf(max_tokens=12))[1], Generation)
        for size in SIZES.values()
    )
    for rows in cuts:
        for one, other in zip(whole, rows, strict=True):
            rounded = {"logprobs", "stated_grid"}
            assert one.model_dump(exclude=rounded) == other.model_dump(exclude=rounded)
            # A batch of another width adds up in another order.
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert one.stated_grid == pytest.approx(other.stated_grid, abs=1e-5)


@pytest.mark.parametrize("size", [ROW_GROUP - 1, ROW_GROUP, 3001, 2 * ROW_GROUP + 9])
def test_merged_rows_are_the_bytes_of_the_whole_table_across_its_row_groups(store, size):
    rng, count = np.random.default_rng(0), 2 * ROW_GROUP + 9
    rows = [generated(number, rng) for number in range(count)]
    asked = [Question(id=f"q{number}", text="?", answers=("a",)) for number in range(count)]
    questions = store.save_rows("questions", asked, Question)
    shards = cut(questions, size, store)
    parts = [
        store.save_rows("generations", rows[start : start + size], Generation)
        for start in range(0, count, size)
    ]
    assert merge(shards, parts, store) == store.save_rows("generations", rows, Generation)


def test_a_shard_holds_what_is_asked_and_nothing_that_a_model_is_not_told(store, questions):
    whole = store.load_rows(questions, Question)
    rows = [row for shard in cut(questions, 10, store) for row in store.load_rows(shard, Question)]
    assert [(row.id, row.text) for row in rows] == [(row.id, row.text) for row in whole]
    assert {(row.answers, row.topic) for row in rows} == {((), "Other")}


def test_other_splits_or_more_questions_leave_the_jobs_of_the_others_as_they_were(store):
    def keys(count, splits):
        every = splits.assign(World(entities_per_topic=24, pool_size=6).questions()[:count])
        shards = cut(store.save_rows("questions", every, Question), 20, store)
        jobs = [Infer(questions=shard, engine=Hf(), elicitation="plain") for shard in shards]
        return [work_key({"job": job}) for job in jobs]

    before = keys(40, Splits())
    assert keys(40, Splits(train=0.2, calibration=0.2, validation=0.2, test=0.4)) == before
    after = keys(100, Splits())
    assert (len(before), len(after)) == (2, 5)
    assert after[:2] == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda rows: rows[:-1], "each of its 3 questions, in order; got 2"),
        (lambda rows: rows[::-1], "another one at question 'q3'"),
        (lambda rows: [*rows, rows[0]], "got 4"),
    ],
)
def test_answers_that_are_not_those_to_the_questions_are_not_merged(store, spoil, words):
    rng = np.random.default_rng(0)
    asked = [Question(id=f"q{number}", text="?", answers=("a",)) for number in range(6)]
    shards = cut(store.save_rows("questions", asked, Question), 3, store)
    rows = [generated(number, rng) for number in range(6)]
    parts = [store.save_rows("generations", part, Generation) for part in (rows[:3], spoil(rows[3:]))]
    with pytest.raises(ArtifactError, match="shard 2 of 2 must hold one answer") as caught:
        merge(shards, parts, store)
    assert words in str(caught.value)
