"""Replies that no service should give, generated: a right one with a part replaced, or anything at all."""

import copy
import gzip
import json

from hypothesis import strategies as st

DIGITS = "1" * 5000
NUMBERS = [2**31, 2**53, 2**63, 2**70, -1, 0.5, -0.0, float("nan"), float("inf"), "@digits@"]
TEXTS = ["", "CORRECT", "INCORRECT", "\x00", "\x1b[2J", "\ud800", "=1+1", "null", "{", "x" * 3000]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([*NUMBERS, *TEXTS]) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
STATUSES = [201, 202, 204, 206, 226, 301, 307, 308, 400, 401, 402, 403, 404, 408, 409, 413, 418, 422]
STATUSES += [425, 429, 451, 499, 500, 502, 503, 504, 520, 529]
HEADERS = [
    {"Retry-After": "nan"},
    {"Retry-After": "-5"},
    {"Retry-After": "soon"},
    {"Retry-After": "0.01"},
    {"Retry-After": "1e400"},
    {"Location": "http://127.0.0.1:9/elsewhere"},
    {"Content-Encoding": "br"},
    {},
]


class Odd:
    """One reply; said in few words, as it can be long."""

    def __init__(self, body, status=200, headers=()):
        self.body, self.status, self.headers = body, status, dict(headers)

    def __repr__(self):
        return f"Odd({self.status}, {self.body[:300]!r}, {self.headers})"

    def _repr_pretty_(self, printer, is_cycle):
        printer.text(repr(self))


def paths(value, above=()):
    """The place of everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield (*above, name)
        yield from paths(part, (*above, name))


def replaced(value, path, by):
    """The value with another part in one place."""
    changed = copy.deepcopy(value)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = by
    return changed


def odd_bodies(right):
    """JSON values: a right reply with one part replaced or taken away."""
    places = list(paths(right))
    return st.tuples(st.sampled_from(places), VALUES).map(lambda odd: replaced(right, *odd))


def text_of(value):
    """JSON, with an integer in it that Python itself refuses to read."""
    return json.dumps(value).replace('"@digits@"', DIGITS)


def odd_replies(right):
    """Odd replies, where `right` is the JSON of a right one."""
    whole = odd_bodies(right).map(lambda body: Odd(text_of(body).encode()))
    messages = st.dictionaries(st.sampled_from(["error", "message", "code", "status", "details"]), VALUES)
    errors = st.builds(
        Odd,
        messages.map(lambda body: text_of(body).encode()),
        st.sampled_from(STATUSES),
        st.sampled_from(HEADERS),
    )
    rubbish = st.builds(Odd, st.binary(max_size=50), st.just(200), st.sampled_from(HEADERS))
    bombs = st.sampled_from(
        [
            Odd(b"[" * 200_000),
            Odd(gzip.compress(b" " * 5_000_000), headers={"Content-Encoding": "gzip"}),
            Odd(text_of({**right, "pad": "x" * 2_000_000}).encode()),
            Odd((text_of(right) * 2).encode()),
            Odd(b"\xef\xbb\xbf" + text_of(right).encode()),
        ]
    )
    return st.one_of(whole, whole, errors, rubbish, bombs)
