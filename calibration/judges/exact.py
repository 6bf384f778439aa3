"""A judge without a model: deterministic, offline, and strict where it is unsure.

It compares dates as dates, numbers as numbers and names as words. It would rather call a right answer
wrong than a wrong one right, so its specificity is high and its sensitivity is not: see `Exact`.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

from calibration.judges.protocol import Item
from calibration.judges.values import find_dates, find_numbers, tidy
from calibration.records import Label, Question, Verdict
from calibration.schema import Schema

_LONGEST = 2000
"""Characters of the longest answer that is read; no short answer is longer."""

_REFUSAL = re.compile(
    r"i (?:do not|don't|did not|can't|cannot|can not|could not|couldn't|was unable|have no|apologi[sz]e)\b"
    r"|i(?:'m| am) (?:not|unable|unsure|sorry)\b|sorry\b|unfortunately\b|as an ai\b|idk\b|n/a\b"
    r"|(?:it(?:'s| is) |that is )?(?:unknown|unclear|unsure|not (?:known|sure|available|specified|certain))\b"
    r"|cannot (?:be )?answer|no (?:answer|information|idea|data)\b"
    r"|there is (?:no|not enough|insufficient) (?:information|record|data)"
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_HEDGES = _set("or either maybe perhaps possibly probably might could not never neither nor except versus vs")
_CONTRARY = _set("before after until till")
_EMPTY = _set("an the patch version")
_FILLERS = _EMPTY | _set(
    "in on at of by to from for with and as is was are were be it its this that he she they his her their "
    "which who answer about around approximately circa roughly exactly total only just also known called "
    "named"
)
_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe", "\u0131": "i", "&": " and "}
)
_SUFFIXES = {r"\+\+": "plusplus", r"\+": "plus", "-": "minus", "#": "sharp"}
"""Signs that tell C++ from C# and O+ from O-."""
_OUTER = ' .,;:!?*"()[]'
_TYPES = ("Date", "Number", "Person", "Place")
_RANGE = re.compile(r"\(\s*acceptable range[^()]*\)")

Outcome = tuple[Label, str]


class Exact(Schema):
    """Marks by rule. The verdict's reason names the rule that decided.

    Against the labels that a language-model judge gave to 5998 short answers of gemma-2-2b-it to Natural
    Questions, one accepted answer each, its specificity is .993, its sensitivity .73 and kappa .80. So an
    accuracy it gives is a lower estimate. Use it where no model can be asked, and to cross-check one.
    """

    kind: Literal["exact"] = "exact"

    @property
    def version(self) -> str:
        """Name and version of the rules."""
        return "exact@1"

    def check(self, questions: Sequence[Question]) -> None:
        """Nothing can be wrong before there are answers."""

    async def judge(self, items: Sequence[Item], *, progress: Callable[[float, str], None]) -> list[Verdict]:
        """One verdict for each item, in their order; progress is told once, at the end."""
        verdicts = []
        for item in items:
            label, reason = mark(item)
            verdicts.append(
                Verdict(question_id=item.question_id, label=label, judge=self.version, reason=reason)
            )
        progress(1.0, f"{len(verdicts)} answers")
        return verdicts


def mark(item: Item) -> tuple[Label, str]:
    """The label of one answer, and the rule that decided.

    >>> mark(Item(question_id="1", question="When?", golds=("1874",), answer="12 March 1874"))
    ('correct', 'same date')
    >>> mark(Item(question_id="1", question="When?", golds=("12 March 1874",), answer="1874"))
    ('incorrect', 'other date')
    """
    if not item.golds:
        return "unjudged", "no accepted answer to compare with"
    if item.answer.strip() and item.answer.strip() in {gold.strip() for gold in item.golds}:
        return "correct", "identical"
    if len(item.answer) > _LONGEST:
        return "incorrect", f"longer than {_LONGEST} characters"
    answer, question = tidy(_one_line(item.answer)), tidy(item.question)
    if not any(character.isalnum() for character in answer):
        return "not_attempted", "empty"
    golds = [form for gold in item.golds for form in _forms(tidy(_one_line(gold)))]
    if any(_is_same(answer, gold) for gold in golds):
        return "correct", "same words"
    if _REFUSAL.match(answer):
        return "not_attempted", "refusal"
    answer_type = item.answer_type if item.answer_type in _TYPES else None
    outcomes = [_compare(gold, answer, question, answer_type) for gold in golds]
    return next((outcome for outcome in outcomes if outcome[0] == "correct"), outcomes[0])


def _one_line(text: str) -> str:
    """Lines told apart by semicolons: an answer in two lines is two answers."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _forms(gold: str) -> list[str]:
    """An accepted answer as it stands, and without a remark in brackets."""
    bare = re.sub(r"\([^()]*\)", " ", gold).strip()
    return [gold] if _RANGE.search(gold) or bare == gold or not _words(bare) else [gold, bare]


def _compare(gold: str, answer: str, question: str, answer_type: str | None) -> Outcome:
    """Apply the rule for what the accepted answer is: a date, a number or a name."""
    if hedges := (_HEDGES & set(_words(answer))) - set(_words(gold)):
        return "incorrect", f"hedged with {min(hedges)!r}"
    return (
        _compare_dates(gold, answer, question, answer_type)
        or _compare_numbers(gold, answer, answer_type)
        or _compare_names(gold, answer, question, answer_type)
    )


def _compare_dates(gold: str, answer: str, question: str, answer_type: str | None) -> Outcome | None:
    """Whether the answer's dates satisfy the gold's, one by one; None when the gold is no date."""
    wanted, around = find_dates(gold)
    if not wanted or answer_type not in (None, "Date") or _digits(around):
        return None
    if answer_type is None and (set(_words(around)) - _FILLERS or not _digits(gold)):
        return None  # a name with a date in it, or one that is a month's, such as May
    given, rest = find_dates(answer)
    if answer_type is None and not given and gold.isdecimal():
        return None  # four digits may be a number as well
    asked = find_dates(question)[0]
    given = [date for date in given if date not in asked] or given  # an answer may repeat the question
    is_other = set(_digits(rest)) - set(_digits(question)) or _CONTRARY & set(_words(rest)) - set(
        _words(around)
    )
    if is_other or len(given) != len(wanted):
        return "incorrect", "other date"
    same = all(date.satisfies(of_gold) for date, of_gold in zip(given, wanted, strict=True))
    return ("correct", "same date") if same else ("incorrect", "other date")


def _compare_numbers(gold: str, answer: str, answer_type: str | None) -> Outcome | None:
    """Whether the numbers are equal, one by one, and the units agree; None when the gold is no number."""
    wanted, given = find_numbers(_RANGE.sub("", gold)), find_numbers(answer)
    if wanted is None or not wanted.values or answer_type in ("Person", "Place"):
        return None
    units = wanted.words - _FILLERS
    if len(units) > 1 and answer_type != "Number":
        return None
    said = given.words - _FILLERS if given else frozenset()
    if given is None or not (units <= said or said <= units):
        return "incorrect", "other number"
    limits = find_numbers(bounds[0]) if (bounds := _RANGE.search(gold)) else None
    if limits and len(limits.values) == 2 and len(given.values) == 1:
        inside = min(limits.values) <= given.values[0] <= max(limits.values)
        return ("correct", "within range") if inside else ("incorrect", "outside range")
    return ("correct", "same number") if given.values == wanted.values else ("incorrect", "other number")


def _compare_names(gold: str, answer: str, question: str, answer_type: str | None) -> Outcome:
    """Whether two names are the same but for order, spelling, further names or a frame around them."""
    wanted, given, asked = _name(gold), _name(answer), set(_words(question))
    is_person = answer_type == "Person" or (answer_type is None and "who" in asked)
    is_place = answer_type == "Place" or (answer_type is None and "where" in asked)
    repeated = set(_digits(question)) - set(_digits(gold))
    if _digits(gold) != [chunk for chunk in _digits(answer) if chunk not in repeated]:
        return "incorrect", "other digits"
    if sorted(wanted) == sorted(given):
        return "correct", "same words"
    if _listed(answer) - _listed(gold):
        head, *tail = answer.split(",")
        if is_place and len(tail) == 1 and _name(head) == wanted and _listed(answer) == {","}:
            return "correct", "same place, with what it lies in"
        return "incorrect", "several answers"
    if _is_misspelt(wanted, given):
        return "correct", "same words but for spelling"
    if is_person and (_is_fuller(wanted, given) or (_is_fuller(given, wanted) and given[0] == wanted[0])):
        return "correct", "same name with fewer or more parts"
    if _is_framed(wanted, given, asked):
        return "correct", "gold within the answer"
    return "incorrect", "other words"


def _name(text: str) -> list[str]:
    """The words of a name without the prepositions before it."""
    words = _words(text)
    start = next((i for i, word in enumerate(words) if word not in _FILLERS), 0)
    return words[start:]


def _is_misspelt(one: list[str], other: list[str]) -> bool:
    """Whether words of six letters and more differ by one typing error each, behind the first letter."""
    from rapidfuzz.distance import OSA

    return len(one) == len(other) and all(
        a == b
        or (min(len(a), len(b)) >= 6 and a[0] == b[0] and (a + b).isalpha() and OSA.distance(a, b) == 1)
        for a, b in zip(one, other, strict=True)
    )


def _is_fuller(long: list[str], short: list[str]) -> bool:
    """Whether `long` is the name `short`, of two words or more, with up to three parts before its last."""
    if len(short) < 2 or not 0 < len(long) - len(short) <= 3 or long[-1] != short[-1]:
        return False
    rest = iter(long)
    return all(word in rest for word in short) and not (set(long) - set(short)) & _FILLERS


def _is_framed(wanted: list[str], given: list[str], asked: set[str]) -> bool:
    """Whether the answer says the gold, and hardly a word beside it that the question did not say."""
    if set(wanted) <= asked or len("".join(wanted)) < 3:
        return False
    starts = range(len(given) - len(wanted) + 1)
    extras = set(given) - set(wanted) - asked - _FILLERS
    return any(given[i : i + len(wanted)] == wanted for i in starts) and len(extras) <= min(2, len(wanted))


def _listed(text: str) -> set[str]:
    """The signs by which a text lists several things."""
    return set(re.findall(r"[,;/]|\band\b", text))


def _words(text: str) -> list[str]:
    """Words without accents, articles and the plural's s; a text of nothing else keeps them."""
    for sign, name in _SUFFIXES.items():
        text = re.sub(rf"(?<=\w){sign}(?!\w)", name, text)
    plain = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    words = re.findall(r"[^\W_]+", re.sub(r"['\u0300-\u036f]", "", plain))
    start = 1 if words[:1] == ["a"] and len(words) > 1 else 0  # elsewhere it may be an initial, or vitamin A
    kept = [word for word in words[start:] if word not in _EMPTY]
    return [word[:-1] if re.fullmatch(r"[a-z]{3,}[^\Ws]s", word) else word for word in kept] or words


def _is_same(answer: str, gold: str) -> bool:
    """Whether two texts have the same characters, or without digits the same letters."""
    if answer.strip(_OUTER) == gold.strip(_OUTER):
        return True
    return not _digits(gold) and "".join(_words(answer)) == "".join(_words(gold)) != ""


def _digits(text: str) -> list[str]:
    """What stands between spaces and holds a digit, in order; the signs inside count: 3:37 is not 3.37."""
    return [chunk.strip(_OUTER) for chunk in text.split() if any(map(str.isdigit, chunk))]
