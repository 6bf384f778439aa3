"""Dates and numbers in short answers, read without guessing.

General date parsers fill in what a text leaves out ("2019" becomes a day in 2019) and choose between
readings ("05/06/2007"). Here a part that is not written stays open, and what has two readings is not read.
All functions expect the output of `tidy`.
"""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_APOSTROPHES = "\u2018\u2019\u02bc\u0060\u00b4"
_SIGNS = str.maketrans(_DASHES + _APOSTROPHES, "-" * len(_DASHES) + "'" * len(_APOSTROPHES))


def tidy(text: str) -> str:
    r"""Level case, Unicode form, dashes, apostrophes and white space; remove control and direction marks.

    >>> tidy("  1929\u20131930\u200f ")
    '1929-1930'
    """
    folded = unicodedata.normalize("NFKC", text.translate(_SIGNS)).casefold()
    kept = (" " if char.isspace() else char for char in folded if char.isspace() or char.isprintable())
    return " ".join("".join(kept).split())


@dataclass(frozen=True)
class Date:
    """A date with holes: what is not written is None. Years BC are negative."""

    year: int | None = None
    month: int | None = None
    day: int | None = None

    def satisfies(self, gold: "Date") -> bool:
        """Whether every part that `gold` names is the same here.

        >>> Date(1874, 3, 12).satisfies(Date(1874)), Date(1874).satisfies(Date(1874, 3, 12))
        (True, False)
        """
        pairs = ((gold.year, self.year), (gold.month, self.month), (gold.day, self.day))
        return all(wanted is None or wanted == given for wanted, given in pairs)


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAME = (
    r"(?P<name>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b"
)
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?\b"
_MONTH = r"(?P<month>\d{1,2})"
_YEAR = r"(?P<year>\d{3,4})\b"
_GAP = r"(?:[ ,./-]|\bof\b|\bthe\b){1,6}"
_ERA = r"(?:\s?(?P<era>b\.?c\.?(?:e\.?)?|a\.?d\.?|c\.?e\.?)(?!\w))"
_DATES = [
    re.compile(rf"(?<![\w.,/:-]){shape}(?!\w|[.,/:-]\d)")
    for shape in (
        rf"(?P<year>\d{{4}})[-/.]{_MONTH}[-/.](?P<day>\d{{1,2}})",
        rf"{_DAY}{_GAP}{_NAME}{_GAP}{_YEAR}{_ERA}?",
        rf"{_NAME}{_GAP}{_DAY}{_GAP}{_YEAR}{_ERA}?",
        rf"(?P<year>\d{{4}}){_GAP}{_NAME}{_GAP}{_DAY}",
        r"(?P<one>\d{1,2})[-/.](?P<two>\d{1,2})[-/.](?P<year>\d{4})",
        rf"{_NAME}{_GAP}{_YEAR}{_ERA}?",
        rf"{_DAY}{_GAP}{_NAME}",
        rf"{_NAME}{_GAP}{_DAY}",
        rf"{_MONTH}[-/](?P<year>\d{{4}})",
        rf"(?P<year>\d{{1,4}}){_ERA}",
        r"a\.?d\.? (?P<year>\d{1,4})",
        r"(?P<year>[12]\d{3})",
        _NAME,
    )
]


def find_dates(text: str) -> tuple[list[Date], str]:
    """The dates of a tidied text in order, and the text around them.

    >>> find_dates("born on 12 march 1874")
    ([Date(year=1874, month=3, day=12)], 'born on ')
    >>> find_dates("05/06/2007")[0], find_dates("1870s")[0]
    ([], [])
    """
    text = re.sub(r"(?<=\d{4})-(?=\d{4}\b)", " - ", text)
    found: list[tuple[int, Date]] = []
    for pattern in _DATES:
        for match in pattern.finditer(text):
            if (date := _date(match.groupdict())) is not None:
                found.append((match.start(), date))
                text = text[: match.start()] + " " * len(match[0]) + text[match.end() :]
    return [date for _, date in sorted(found, key=lambda pair: pair[0])], re.sub(" +", " ", text)


def _date(parts: dict[str, str | None]) -> Date | None:
    """A date from the named parts of a match; None when no calendar has it or it reads two ways."""
    year, month, day = (int(part) if (part := parts.get(name)) else None for name in ("year", "month", "day"))
    if parts.get("one"):
        one, two = int(parts["one"] or 0), int(parts["two"] or 0)
        if one != two and max(one, two) <= 12:
            return None
        day, month = (one, two) if two <= 12 else (two, one)
    if name := parts.get("name"):
        month = _MONTHS.index(name[:3]) + 1
    if not 1 <= (month or 1) <= 12 or not 1 <= (day or 1) <= 31 or 0 in (month, day):
        return None
    if year is not None and (parts.get("era") or "").startswith("b"):
        year = -year
    return Date(year, month, day)


_WORDS = {
    word: Decimal(value)
    for first, step, words in (
        (
            0,
            1,
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
        ),
        (16, 1, "sixteen seventeen eighteen nineteen"),
        (0, 1, "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"),
        (13, 1, "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"),
        (20, 10, "twenty thirty forty fifty sixty seventy eighty ninety"),
        (0, 1, "none once twice thrice"),
        (0, 1, "nil"),
    )
    for value, word in zip(range(first, 100, step), words.split(), strict=False)
}
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "crores": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
}
_UNITS = {
    name: names.split()[0]
    for names in (
        "m metre metres meter meters",
        "km kilometre kilometres kilometer kilometers kms",
        "cm centimetre centimetres centimeter centimeters",
        "mm millimetre millimetres millimeter millimeters",
        "ft foot feet",
        "inch inches",
        "mi mile miles",
        "kg kilogram kilograms kilo kilos",
        "g gram grams",
        "h hour hours hr hrs",
        "min minute minutes mins",
        "s sec secs seconds",
        "square sq",
        "percent %",
        "degree degrees °",
        "dollar dollars usd $ us$",
        "euro euros eur €",
        "pound pounds gbp £",
        "rupee rupees rs inr ₹",
        "yen jpy ¥",
        "w watt watts",
        "hp horsepower",
        "mp megapixel megapixels",
        "mhz megahertz",
        "year years yr yrs",
    )
    for name in names.split()
}
_CODE = re.compile(r"[a-z]-?\d|\d[-/:]\d|\d\.\d+\.\d|\d,(?!\d{3}(?!\d))\d|#[0-9a-f]*[a-f]|\d0'?s\b")
_JOINT = re.compile(
    r"\b(?P<article>an? )(?=hundred|thousand|million|billion)|(?<=hundred|housand|million) and (?=[a-z])"
)
_PIECE = re.compile(
    r"(?P<numeral>(?:(?<![\w.)])-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?P<ordinal>(?:st|nd|rd|th)\b)?"
    r"|(?P<word>[^\W\d_]+|[%°$€£¥₹])"
)


@dataclass(frozen=True)
class Numbers:
    """The numbers of a text in order, and its other words, units brought to one name."""

    values: tuple[Decimal, ...]
    words: frozenset[str]


def find_numbers(text: str) -> Numbers | None:
    """The numbers of a tidied text; None when it holds digits that are no number (codes, times, decades).

    >>> find_numbers("1.65 million metres").values, find_numbers("twenty-two").values
    ((Decimal('1650000.00'),), (Decimal('22'),))
    >>> find_numbers("1994-033a") is None
    True
    """
    if _CODE.search(text):
        return None
    values: list[Decimal] = []
    words: set[str] = set()
    whole, group = Decimal(0), None  # a number that can still grow: "two thousand" and "five" of 2500
    for match in _PIECE.finditer(_JOINT.sub(_joined, text)):
        word = match["word"] or ""
        value = Decimal(match["numeral"].replace(",", "")) if match["numeral"] else _WORDS.get(word)
        if word in _SCALES and group is not None:
            group *= _SCALES[word]
            if word != "hundred":
                whole, group = whole + group, Decimal(0)
            values[-1] = whole + group
        elif value is None:
            words.add(_unit(word))
            group = None
        elif group is not None and word and _continues(whole, group, value):
            group += value
            values[-1] = whole + group
        else:
            whole, group = Decimal(0), value
            values.append(value)
    return Numbers(tuple(values), frozenset(words))


def _joined(match: re.Match[str]) -> str:
    """Write "a hundred and five" as "one hundred five"."""
    return "one " if match["article"] else " "


def _continues(whole: Decimal, group: Decimal, value: Decimal) -> bool:
    """Whether "twenty" goes on with "two", "hundred" or "thousand" with anything below a hundred."""
    if group % 100 == 0:
        return value < 100 and whole + group > 0
    return group % 10 == 0 and group % 100 >= 20 and 0 < value < 10


def _unit(word: str) -> str:
    return _UNITS.get(word) or (word[:-1] if len(word) > 3 and word.endswith("s") else word)
