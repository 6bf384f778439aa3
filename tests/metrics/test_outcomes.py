"""Promises of the tally, the only place where confidences and marks are checked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.metrics.outcomes import tally

answers = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@given(answers, st.randoms())
def test_the_order_of_the_answers_never_matters(rows, random):
    shuffled = rows.copy()
    random.shuffle(shuffled)
    one, other = tally(*zip(*rows, strict=True)), tally(*zip(*shuffled, strict=True))
    for field in ("level", "count", "right"):
        assert getattr(one, field).tobytes() == getattr(other, field).tobytes()


EDGES = [0.0, -0.0, 5e-324, 2.2250738585072014e-308, 0.5, 0.5 + 2**-53, 1 - 2**-53, 1.0]


@given(st.lists(st.tuples(st.sampled_from(EDGES) | st.floats(0, 1), st.booleans()), min_size=1))
def test_every_distinct_float_is_a_level_of_its_own_down_to_the_last_bit(rows):
    confidence, correct = np.array([c for c, _ in rows]), np.array([y for _, y in rows])
    level, count = np.unique(confidence, return_counts=True)
    o = tally(confidence, correct)
    assert o.level.tobytes() == (level + 0.0).tobytes()  # -0.0 is 0.0
    assert o.count.tolist() == count.tolist()
    assert o.right.tolist() == [int(correct[confidence == value].sum()) for value in level]
    assert (o.level.dtype, o.count.dtype, o.right.dtype) == (np.float64, np.int64, np.int64)


@given(answers)
def test_the_lists_given_are_left_as_they_were(rows):
    confidence, correct = np.array([c for c, _ in rows]), np.array([float(y) for _, y in rows])
    before = confidence.tobytes(), correct.tobytes()
    tally(confidence, correct)
    assert (confidence.tobytes(), correct.tobytes()) == before


@given(answers)
def test_nothing_is_lost(rows):
    confidence, correct = np.array([c for c, _ in rows]), np.array([y for _, y in rows])
    o = tally(confidence, correct)
    assert o.n == len(rows)
    assert o.accuracy == pytest.approx(correct.mean())
    assert o.mean_confidence == pytest.approx(confidence.mean())


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([0.1, 70.0], [0, 1], r"confidence\[1\] must be in \[0, 1\].*got 70"),
        ([0.1, float("nan")], [0, 1], r"confidence\[1\].*got nan"),
        ([-0.5], [0], r"confidence\[0\].*got -0.5"),
        ([0.1, 0.2], [0, 2], r"correct\[1\] must be 0 or 1.*got 2"),
        ([0.1], [float("nan")], r"correct\[0\].*got nan"),
        ([0.1, 0.2], [0], r"shapes \(2,\) and \(1,\)"),
        ([], [], r"non-empty"),
        ([[0.1]], [[0]], r"shapes \(1, 1\)"),
    ],
)
def test_a_value_out_of_place_is_named(confidence, correct, message):
    with pytest.raises(DataError, match=message):
        tally(confidence, correct)
