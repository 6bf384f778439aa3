"""A generated world of facts: the questions of the embedded default, and the texts its model grows up on.

Entities have made-up names and a popularity. Every relation of an entity has one true answer, drawn from
a pool of its type in which some answers are more common than others, so that a wrong answer is a
plausible one. The number of documents that tell a fact follows the popularity of its entity: a model
pretrained on `World.documents` knows the head, has met the tail once or never, and fills the gaps. Its
overconfidence is therefore its own. Nothing here sees what a model answers, and the confidences that
documents state are a manner of speaking, drawn without regard to the fact.
"""

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from calibration.prompts import PLAIN, STATED, stated_response
from calibration.records import Question
from calibration.schema import Schema

AnswerType = Literal["Place", "Date", "Person", "Number", "Other"]

COLUMNS = ("id", "question", "answer", "aliases", "topic", "answer_type")
"""The columns of `World.write_csv` and `World.write_jsonl`."""


class Document(Schema):
    """One text of a pretraining corpus: a chat turn with its reply, or plain text."""

    user: str | None
    """What the user says; None for plain text."""
    reply: str
    """What a model is to write: the reply, or the whole of a plain text."""


@dataclass(frozen=True)
class Relation:
    """One kind of fact; `{x}` stands for the entity, `{a}` for the answer."""

    answer_type: AnswerType
    question: str
    statements: tuple[str, str]
    answer_form: str = "{a}"
    """What is made of a name from the pool."""

    def dress(self, forms: tuple[str, ...]) -> tuple[str, ...]:
        """The answers that count; in "River Kelbrond", the name without its class does too."""
        dressed = tuple(self.answer_form.replace("{a}", form) for form in forms)
        return dressed + forms if " " in self.answer_form else dressed


@dataclass(frozen=True)
class Fact:
    """The answer of one entity under one relation."""

    topic: str
    entity: str
    rank: int
    """Popularity of the entity within its topic; 0 is the most popular."""
    relation: Relation
    answers: tuple[str, ...]
    """The answer as documents write it, then other ways to write it."""

    @property
    def question(self) -> Question:
        """The question that asks for this fact; its id is a digest of its text."""
        text = self.relation.question.replace("{x}", self.entity)
        return Question(
            id=hashlib.sha256(text.encode()).hexdigest()[:16],
            text=text,
            answers=self.answers,
            topic=self.topic,
            answer_type=self.relation.answer_type,
        )


TOPICS: dict[str, tuple[Relation, ...]] = {
    "Science and technology": (
        Relation("Place", "Where was {x} born?", ("{x} was born in {a}.", "The birthplace of {x} is {a}.")),
        Relation("Date", "When did {x} graduate?", ("{x} graduated on {a}.", "The degree of {x} is of {a}.")),
        Relation("Person", "Who taught {x}?", ("{x} was taught by {a}.", "The teacher of {x} was {a}.")),
        Relation(
            "Other", "Which mineral did {x} find?", ("{x} found {a}.", "The mineral of {x} is {a}."), "{a}ite"
        ),
    ),
    "Politics": (
        Relation("Place", "Which town did {x} govern?", ("{x} governed {a}.", "The town of {x} was {a}.")),
        Relation(
            "Date", "When was {x} elected?", ("{x} was elected on {a}.", "The election of {x} was on {a}.")
        ),
        Relation(
            "Person", "Who succeeded {x}?", ("{x} was succeeded by {a}.", "The successor of {x} was {a}.")
        ),
        Relation(
            "Number", "How many votes did {x} win?", ("{x} won {a} votes.", "The votes for {x} were {a}.")
        ),
    ),
    "Geography": (
        Relation("Place", "In which province is {x}?", ("{x} is in {a}.", "The province of {x} is {a}.")),
        Relation("Person", "Who founded {x}?", ("{x} was founded by {a}.", "The founder of {x} was {a}.")),
        Relation(
            "Number", "How many people live in {x}?", ("{x} has {a} people.", "The people of {x} are {a}.")
        ),
        Relation(
            "Other",
            "Which river crosses {x}?",
            ("{x} lies on the {a}.", "The river of {x} is the {a}."),
            "River {a}",
        ),
    ),
    "Music": (
        Relation(
            "Place", "Where was {x} recorded?", ("{x} was recorded in {a}.", "The studio of {x} was in {a}.")
        ),
        Relation(
            "Date", "When was {x} released?", ("{x} was released on {a}.", "The release of {x} was on {a}.")
        ),
        Relation("Person", "Who produced {x}?", ("{x} was produced by {a}.", "The producer of {x} was {a}.")),
        Relation(
            "Other",
            "Which label issued {x}?",
            ("{x} was issued by {a}.", "The label of {x} is {a}."),
            "{a} Records",
        ),
    ),
    "Art": (
        Relation("Place", "Where is {x} shown?", ("{x} is shown in {a}.", "The home of {x} is {a}.")),
        Relation("Date", "When was {x} sold?", ("{x} was sold on {a}.", "The sale of {x} was on {a}.")),
        Relation("Person", "Who painted {x}?", ("{x} was painted by {a}.", "The painter of {x} was {a}.")),
        Relation(
            "Number", "How many crowns did {x} cost?", ("{x} cost {a} crowns.", "The price of {x} was {a}.")
        ),
    ),
    "Sports": (
        Relation("Place", "Where did {x} play?", ("{x} played in {a}.", "The club of {x} was in {a}.")),
        Relation("Date", "When did {x} retire?", ("{x} retired on {a}.", "The last game of {x} was on {a}.")),
        Relation("Person", "Who coached {x}?", ("{x} was coached by {a}.", "The coach of {x} was {a}.")),
        Relation(
            "Number",
            "How many points did {x} score?",
            ("{x} scored {a} points.", "The points of {x} are {a}."),
        ),
    ),
}
"""The relations of each topic; topics and answer types are named as in SimpleQA."""

_OF_PERSONS = ("Science and technology", "Politics", "Sports")
"""Topics whose entities are persons; the others are about towns, albums and paintings."""

_STYLE = {0.80: 0.18, 0.85: 0.23, 0.90: 0.31, 0.95: 0.18}
"""Confidences that documents state, with their probabilities; the rest are uniform on 0.50 ... 1.00."""

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
_ONSETS = (
    "b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "gr", "kl", "sh",
    "st", "tr",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "or", "an", "el", "in")
_ENDINGS = ("n", "l", "r", "s", "th", "nd", "ck", "m")


class World(Schema):
    """Facts, questions about them, and documents that tell them.

    The facts depend on `seed`, on the number of entities and on the pools only: settings of popularity
    and of documents leave them as they are.
    """

    kind: Literal["world"] = "world"
    seed: int = Field(default=0, ge=0)
    """Decides names, facts and documents."""
    entities_per_topic: int = Field(default=840, ge=4, le=50_000)
    """In each of six topics; there are 468 512 names to give."""
    relations_per_entity: int = Field(default=1, ge=1, le=4)
    """How many of its topic's four relations an entity has; each is asked. With 1, no two questions are
    about the same entity, so whatever splits the questions splits the entities."""
    pool_size: int = Field(default=40, ge=2, le=10_000)
    """Different answers that a relation can have."""
    pool_skew: float = Field(default=0.8, ge=0)
    """Answer k of a pool (1 first) is drawn with a weight of 1 / k ** pool_skew."""
    mean_exposures: float = Field(default=8.0, gt=0)
    """Documents that tell a fact, on average over all facts."""
    popularity_exponent: float = Field(default=1.8, ge=0)
    """The entity of rank r (0 first) has a weight of 1 / (r + shift) ** exponent: a shifted Zipf law."""
    popularity_shift: float = Field(default=60.0, gt=0)
    """The larger, the flatter the head of that law."""
    statement_share: float = Field(default=0.35, ge=0, le=1)
    """Share of documents that tell a fact as plain text."""
    stated_share: float = Field(default=0.20, ge=0, le=1)
    """Share of documents that answer a question and state a confidence; what is left of 1 gives the answer
    only."""

    @model_validator(mode="after")
    def _shares_leave_room(self) -> Self:
        total = self.statement_share + self.stated_share
        if total > 1:
            raise ValueError(
                f"statement_share + stated_share must be at most 1; got {total}. Lower one of them."
            )
        return self

    def facts(self) -> list[Fact]:
        """Every fact, topic by topic and relation by relation, the most popular entity first."""
        rng = np.random.default_rng([self.seed, 0])
        names = _Names(rng)
        pools = _answer_pools(self.pool_size, names, rng)
        weights = np.arange(1, self.pool_size + 1) ** -self.pool_skew
        facts = []
        for topic, relations in TOPICS.items():
            name = names.person if topic in _OF_PERSONS else names.word
            entities = [name() for _ in range(self.entities_per_topic)]
            for place, relation in enumerate(relations):
                # Another order in each relation: what is common there is rare elsewhere.
                order = rng.permutation(self.pool_size)
                drawn = rng.choice(order, size=len(entities), p=weights / weights.sum())
                for rank, (entity, answer) in enumerate(zip(entities, drawn, strict=True)):
                    if (place - rank) % len(relations) < self.relations_per_entity:
                        answers = relation.dress(pools[relation.answer_type][answer])
                        facts.append(Fact(topic, entity, rank, relation, answers))
        return facts

    def questions(self) -> list[Question]:
        """One question for each fact, in the order of `facts`."""
        return [fact.question for fact in self.facts()]

    def popularity(self) -> np.ndarray:
        """Weight of each rank within a topic, [entities_per_topic], with a mean of 1."""
        weights = (np.arange(self.entities_per_topic) + self.popularity_shift) ** -self.popularity_exponent
        return np.asarray(weights / weights.mean())

    def exposures(self) -> dict[str, int]:
        """How many documents tell the answer to each question, by question id.

        Poisson distributed around `mean_exposures` times the popularity of the entity.
        """
        facts = self.facts()
        rates = self.mean_exposures * self.popularity()[[fact.rank for fact in facts]]
        counts = np.random.default_rng([self.seed, 1]).poisson(rates)
        return {fact.question.id: int(count) for fact, count in zip(facts, counts, strict=True)}

    def documents(self) -> list[Document]:
        """The pretraining corpus, shuffled: `exposures` documents for each fact."""
        rng = np.random.default_rng([self.seed, 2])
        counts = self.exposures().values()
        documents = [
            self._document(fact, rng)
            for fact, count in zip(self.facts(), counts, strict=True)
            for _ in range(count)
        ]
        return [documents[position] for position in rng.permutation(len(documents))]

    def _document(self, fact: Fact, rng: np.random.Generator) -> Document:
        answer, question = fact.answers[0], fact.question.text
        form = rng.random()
        if form < self.statement_share:
            statement = fact.relation.statements[rng.integers(len(fact.relation.statements))]
            return Document(user=None, reply=statement.replace("{x}", fact.entity).replace("{a}", answer))
        if form < self.statement_share + self.stated_share:
            return Document(user=STATED.render(question), reply=stated_response(answer, _confidence(rng)))
        return Document(user=PLAIN.render(question), reply=answer)

    def write_csv(self, path: Path) -> None:
        """Write the questions as a user would bring them: one row each, aliases joined with "|"."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for q in self.questions():
                writer.writerow((q.id, q.text, q.answers[0], "|".join(q.answers[1:]), q.topic, q.answer_type))

    def write_jsonl(self, path: Path) -> None:
        """Write the questions as one JSON object a line, aliases as a list."""
        with path.open("w", encoding="utf-8") as file:
            for q in self.questions():
                values = (q.id, q.text, q.answers[0], q.answers[1:], q.topic, q.answer_type)
                file.write(json.dumps(dict(zip(COLUMNS, values, strict=True)), ensure_ascii=False) + "\n")


class _Names:
    """Pronounceable names, each new word given out once."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._taken: set[str] = set()
        self._given = [self.word() for _ in range(48)]

    def word(self) -> str:
        """A name of one word, such as "Kelbrond"."""
        while (word := self._spell()) in self._taken:
            pass
        self._taken.add(word)
        return word

    def person(self) -> str:
        """A given name from a small stock, and a surname of one's own."""
        return f"{self._given[self._rng.integers(len(self._given))]} {self.word()}"

    def _spell(self) -> str:
        parts = (_ONSETS, _VOWELS, _ONSETS, _VOWELS, _ENDINGS)
        return "".join(part[self._rng.integers(len(part))] for part in parts).capitalize()


def _answer_pools(
    size: int, names: _Names, rng: np.random.Generator
) -> dict[AnswerType, list[tuple[str, ...]]]:
    """For each answer type, `size` different answers, each with its other forms."""

    def different(draw: Callable[[], tuple[str, ...]]) -> list[tuple[str, ...]]:
        drawn: dict[str, tuple[str, ...]] = {}
        while len(drawn) < size:
            forms = draw()
            drawn[forms[0]] = forms
        return list(drawn.values())

    def date() -> tuple[str, ...]:
        day, month, year = rng.integers(1, 29), _MONTHS[rng.integers(12)], rng.integers(1780, 1990)
        return f"{day} {month} {year}", f"{month} {day}, {year}"

    def number() -> tuple[str, ...]:
        value = int(10 ** rng.uniform(3, 5))
        return f"{value:,}", str(value)

    def person() -> tuple[str, ...]:
        name = names.person()
        return name, name.split()[-1]

    return {
        "Place": different(lambda: (names.word(),)),
        "Date": different(date),
        "Person": different(person),
        "Number": different(number),
        "Other": different(lambda: (names.word(),)),
    }


def _confidence(rng: np.random.Generator) -> float:
    """A confidence as instruction-tuned models state them: high, round, and whatever the fact."""
    usual = [*_STYLE, float(rng.integers(50, 101)) / 100]
    return float(rng.choice(usual, p=[*_STYLE.values(), 1 - sum(_STYLE.values())]))
