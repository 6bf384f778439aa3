from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.judges.values import Date, find_dates, find_numbers, tidy


@given(st.dates(min_value=date(1000, 1, 1)))
def test_every_way_of_writing_a_day_is_the_same_day(day):
    month, number, year = day.strftime("%B"), day.day, day.year
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    for text in (
        day.isoformat(),
        f"{number} {month} {year}",
        f"{number}{suffix} of {month}, {year}.",
        f"{number} of {month} of {year}",
        f"{month} {number}, {year}",
        f"{month[:3]}. {number}{suffix} {year}",
        f"{number}/{month}/{year}",
        f"{year} {month} {number}",
    ):
        assert find_dates(tidy(text))[0] == [Date(year, day.month, number)], text


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("1874", [Date(1874)]),
        ("in 1874.", [Date(1874)]),
        ("March 1874", [Date(1874, 3)]),
        ("08-1981", [Date(1981, 8)]),
        ("27 August", [Date(None, 8, 27)]),
        ("July", [Date(None, 7)]),
        ("44 BC", [Date(-44)]),
        ("AD 70", [Date(70)]),
        ("27 June 363", [Date(363, 6, 27)]),
        ("1929\u20131930", [Date(1929), Date(1930)]),
        ("from May 1976 to 2 June 1977", [Date(1976, 5), Date(1977, 6, 2)]),
        ("17/06/2021", [Date(2021, 6, 17)]),
        ("06/17/2021", [Date(2021, 6, 17)]),
        ("06/06/2021", [Date(2021, 6, 6)]),
        ("05/06/2007", []),
        ("2021-13-40", []),
        ("1870s", []),
        ("1,874", []),
        ("5.0.4", []),
        ("12", []),
        ("marching on", []),
    ],
)
def test_a_date_keeps_its_holes_and_what_reads_two_ways_is_not_read(text, dates):
    assert find_dates(tidy(text))[0] == dates


@given(st.integers(0, 999), st.integers(0, 999), st.integers(0, 999))
def test_thousands_separators_do_not_change_a_number(a, b, c):
    number = a * 10**6 + b * 10**3 + c
    assert find_numbers(f"{number:,}").values == find_numbers(str(number)).values == (Decimal(number),)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("twenty-two", [22]),
        ("one hundred and five", [105]),
        ("two thousand five hundred", [2500]),
        ("five hundred thousand", [500_000]),
        ("a million", [1_000_000]),
        ("1.65 million", [1_650_000]),
        ("Rs 500 crore", [5_000_000_000]),
        ("nineteen eighty-four", [19, 84]),
        ("third", [3]),
        ("53rd", [53]),
        ("-2", [-2]),
        ("\u22122", [-2]),
        ("38 - 26", [38, 26]),
        ("5 ft 10 in", [5, 10]),
        ("no numbers here", []),
    ],
)
def test_numbers_are_read_in_figures_and_in_words(text, values):
    assert list(find_numbers(tidy(text)).values) == values


@pytest.mark.parametrize(
    "text",
    [
        "1994-033a",
        "db11150",
        "10.1515/zfs-2021",
        "3:37",
        "1,48",
        "1,4826",
        "v0.4.0",
        "1/2",
        "#ffff9f",
        "1870s",
    ],
)
def test_codes_times_and_decades_are_no_numbers(text):
    assert find_numbers(text) is None


@pytest.mark.parametrize(
    ("one", "two"), [("390 metres", "390 m"), ("5 feet", "5 ft"), ("$3", "3 dollars"), ("55%", "55 percent")]
)
def test_a_unit_has_one_name(one, two):
    assert find_numbers(one).words == find_numbers(two).words


def test_units_that_differ_have_different_names():
    names = [
        "metres",
        "feet",
        "inches",
        "miles",
        "kg",
        "grams",
        "dollars",
        "euros",
        "percent",
        "hours",
        "minutes",
    ]
    assert len({find_numbers(f"5 {name}").words for name in names}) == len(names)
