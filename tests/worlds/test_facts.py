from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import kruskal, spearmanr

from calibration.confidence import read_reply
from calibration.prompts import PLAIN, STATED
from calibration.sources.table import Table
from calibration.worlds.facts import TOPICS, Document, World

SMALL = World(entities_per_topic=40, pool_size=8)


def tellings(world):
    """Every text a document may hold short of the confidence, and the id of the fact it tells."""
    told = {}
    for fact in world.facts():
        key, text, answer = fact.question.id, fact.question.text, fact.answers[0]
        told[PLAIN.render(text), answer] = key
        told[STATED.render(text), f"Answer: {answer}"] = key
        for statement in fact.relation.statements:
            told[None, statement.replace("{x}", fact.entity).replace("{a}", answer)] = key
    assert len(told) == 4 * len(world.facts()), "two facts are told by the same text"
    return told


def key_of(document, told):
    return told[document.user, document.reply.split("\nConfidence: ")[0]]


def test_a_seed_decides_the_world():
    again = World(entities_per_topic=40, pool_size=8)
    assert again.questions() == SMALL.questions()
    assert again.exposures() == SMALL.exposures()
    assert again.documents() == SMALL.documents()


def test_another_seed_is_another_world():
    other = SMALL.model_copy(update={"seed": 1})
    assert not {q.text for q in SMALL.questions()} & {q.text for q in other.questions()}
    assert SMALL.exposures().keys().isdisjoint(other.exposures())
    assert list(SMALL.exposures().values()) != list(other.exposures().values())


@pytest.mark.parametrize(
    "change",
    [
        {"popularity_exponent": 0.5},
        {"popularity_shift": 1.0},
        {"mean_exposures": 2.0},
        {"statement_share": 0.0},
        {"stated_share": 0.6},
    ],
    ids=lambda change: next(iter(change)),
)
def test_facts_do_not_depend_on_how_they_are_told(change):
    other = SMALL.model_copy(update=change)
    assert other.facts() == SMALL.facts()
    assert other.documents() != SMALL.documents()


def test_the_manner_of_telling_leaves_exposures_as_they_are():
    other = SMALL.model_copy(update={"statement_share": 0.0, "stated_share": 1.0})
    assert other.exposures() == SMALL.exposures()


@pytest.mark.parametrize("relations", [1, 2, 4])
def test_every_entity_has_its_number_of_relations_and_every_relation_is_asked(relations):
    facts = SMALL.model_copy(update={"relations_per_entity": relations}).facts()
    assert set(Counter(fact.entity for fact in facts).values()) == {relations}
    assert {(fact.topic, fact.relation) for fact in facts} == {
        (topic, relation) for topic, four in TOPICS.items() for relation in four
    }


def test_every_topic_and_every_answer_type_is_asked_about():
    questions = SMALL.questions()
    assert Counter(q.topic for q in questions) == dict.fromkeys(TOPICS, 40)
    assert {q.answer_type for q in questions} == {"Place", "Date", "Person", "Number", "Other"}


def test_ids_texts_and_entities_are_unique():
    world = World(entities_per_topic=300)
    questions = world.questions()
    assert len({q.id for q in questions}) == len({q.text for q in questions}) == len(questions) == 1800
    assert len({fact.entity for fact in world.facts()}) == 1800


def test_an_answer_is_written_in_the_ways_that_its_type_has():
    answers = {(fact.relation.answer_type, fact.relation.answer_form): fact.answers for fact in SMALL.facts()}
    value, digits = answers["Number", "{a}"]
    assert value == f"{int(digits):,}"
    day, month, year = answers["Date", "{a}"][0].split()
    assert answers["Date", "{a}"][1] == f"{month} {day}, {year}"
    assert answers["Person", "{a}"][0].split()[1] == answers["Person", "{a}"][1]
    assert answers["Other", "River {a}"][0] == f"River {answers['Other', 'River {a}'][1]}"
    assert len(answers["Place", "{a}"]) == len(answers["Other", "{a}ite"]) == 1


def test_the_more_skewed_a_pool_the_commoner_its_commonest_answer():
    def commonest(skew):
        world = World(entities_per_topic=200, relations_per_entity=4, pool_skew=skew)
        drawn = Counter((f.topic, f.relation.question, f.answers) for f in world.facts())
        top = {}
        for (topic, asked, _), count in drawn.items():
            top[topic, asked] = max(top.get((topic, asked), 0), count)
        return np.mean(list(top.values())) / 200

    # 1 / sum(1 / k**skew) for k = 1 ... 40, plus what the largest of 40 noisy shares gains.
    assert commonest(0.0) < 0.08
    assert commonest(2.0) == pytest.approx(0.62, abs=0.03)


def test_popularity_is_a_shifted_zipf_law_with_a_mean_of_one():
    popularity = World(entities_per_topic=50, popularity_exponent=1.5, popularity_shift=3.0).popularity()
    assert popularity.mean() == pytest.approx(1)
    assert popularity[0] / popularity[9] == pytest.approx((12 / 3) ** 1.5)


def test_the_most_popular_tenth_of_the_entities_has_most_of_the_exposures():
    world = World(entities_per_topic=840, popularity_exponent=1.8, popularity_shift=15.0)
    exposures = world.exposures()
    head = sum(exposures[fact.question.id] for fact in world.facts() if fact.rank < 84)
    # The integral of (r + 15)**-1.8 over the first 84 ranks, as a share of that over all 840.
    share = (15**-0.8 - 99**-0.8) / (15**-0.8 - 855**-0.8)
    assert head / sum(exposures.values()) == pytest.approx(share, abs=0.01)
    assert share == pytest.approx(0.81, abs=0.005)


def test_exposures_scatter_around_their_mean_as_poisson_counts():
    counts = np.array(list(World(entities_per_topic=300, popularity_exponent=0.0).exposures().values()))
    assert counts.mean() == pytest.approx(8, abs=4 * (8 / 1800) ** 0.5)
    assert counts.var() == pytest.approx(8, rel=0.15)


def test_a_fact_is_told_by_as_many_documents_as_it_has_exposures():
    told = tellings(SMALL)
    counts = Counter(key_of(document, told) for document in SMALL.documents())
    assert counts == {key: count for key, count in SMALL.exposures().items() if count}


def test_documents_are_shuffled():
    told = tellings(SMALL)
    order = {key: place for place, key in enumerate(SMALL.exposures())}
    places = [order[key_of(document, told)] for document in SMALL.documents()]
    assert abs(spearmanr(range(len(places)), places).statistic) < 4 / len(places) ** 0.5


def test_documents_put_the_prompts_word_for_word():
    asked = {q.text for q in SMALL.questions()}
    for document in SMALL.documents():
        if document.user is None:
            assert "?" not in document.reply
            continue
        question = document.user.split("Question: ")[1].split("\n")[0]
        assert question in asked
        stated = "\nConfidence: " in document.reply
        assert document.user == (STATED if stated else PLAIN).render(question)


def test_documents_come_in_the_shares_that_were_set():
    documents = World(entities_per_topic=100, statement_share=0.3, stated_share=0.5).documents()
    plain_texts = np.mean([d.user is None for d in documents])
    stated = np.mean(["\nConfidence: " in d.reply for d in documents])
    assert plain_texts == pytest.approx(0.3, abs=4 * (0.21 / len(documents)) ** 0.5)
    assert stated == pytest.approx(0.5, abs=4 * (0.25 / len(documents)) ** 0.5)


def test_a_stated_confidence_says_nothing_about_its_fact():
    world = World(entities_per_topic=60, statement_share=0.0, stated_share=1.0)
    told, exposures = tellings(world), world.exposures()
    keys = [key_of(document, told) for document in world.documents()]
    stated = np.array([read_reply(document.reply, "stated").stated for document in world.documents()])
    noise = 4 / len(stated) ** 0.5
    assert abs(spearmanr(stated, [exposures[key] for key in keys]).statistic) < noise
    by_fact = {}
    for key, value in zip(keys, stated, strict=True):
        by_fact.setdefault(key, []).append(value)
    assert kruskal(*by_fact.values()).pvalue > 0.001
    # High and round: four values take nine tenths, the rest is spread over half of the scale.
    assert np.mean(np.isin(stated, [0.8, 0.85, 0.9, 0.95])) == pytest.approx(0.908, abs=noise)
    assert 0.5 <= stated.min() < 0.6
    assert stated.max() <= 1


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_file_of_the_questions_reads_back_as_the_questions(form, tmp_path):
    path = tmp_path / f"world.{form}"
    {"csv": SMALL.write_csv, "jsonl": SMALL.write_jsonl}[form](path)
    table = Table(path=path, id="id", aliases="aliases", topic="topic", answer_type="answer_type")
    assert table.questions() == SMALL.questions()


def test_shares_above_one_are_refused():
    with pytest.raises(ValidationError, match=r"must be at most 1; got 1\.2\. Lower one of them"):
        World(statement_share=0.7, stated_share=0.5)


@pytest.mark.parametrize("change", [{"entities_per_topic": 100_000}, {"pool_size": 100_000}])
def test_more_names_than_there_are_is_refused(change):
    with pytest.raises(ValidationError, match="less than or equal to"):
        World(**change)


def test_a_document_is_plain_text_or_a_turn_and_a_reply():
    assert Document(user=None, reply="x").user is None
    with pytest.raises(ValidationError):
        Document(reply="x")
