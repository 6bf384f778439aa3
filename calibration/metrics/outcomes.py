"""Graded answers, reduced to what every metric needs: distinct confidence, how many, how many right."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.errors import DataError

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """How many answers were given at each confidence, and how many of them were right.

    `count` and `right` may carry a leading axis, one row a bootstrap resample; every metric then returns
    one value a row. A level may have count 0 there.
    """

    level: FloatArray
    """Distinct confidences in [0, 1], ascending; shape [levels]."""
    count: IntArray
    """Answers at each level; shape [..., levels]."""
    right: IntArray
    """Right answers among them; shape [..., levels]."""

    @property
    def n(self) -> IntArray:
        """Answers in all."""
        return np.asarray(self.count.sum(axis=-1))

    @property
    def accuracy(self) -> FloatArray:
        """Share of right answers, in [0, 1]."""
        return np.asarray(self.right.sum(axis=-1) / self.n)

    @property
    def mean_confidence(self) -> FloatArray:
        """Mean confidence, in [0, 1]."""
        return np.asarray((self.level * self.count).sum(axis=-1) / self.n)


def tally(confidence: ArrayLike, correct: ArrayLike) -> Outcomes:
    """Count answers and right answers at each distinct confidence.

    This is the only place where confidences and marks are checked.

    Args:
        confidence: Shape [n], each in [0, 1].
        correct: Shape [n], each 0 or 1 (or a bool).

    Raises:
        DataError: The two are not one-dimensional, equally long and non-empty, or a value is not finite
            or out of range; the message names its index.

    >>> tally([0.9, 0.1, 0.9], [1, 0, 0]).right.tolist()
    [0, 1]
    """
    values, marks = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if values.ndim != 1 or values.shape != marks.shape or not values.size:
        raise DataError(
            "confidence and correct must be two equally long, non-empty lists; "
            f"got shapes {values.shape} and {marks.shape}"
        )
    _refuse("confidence", values, ~((values >= 0) & (values <= 1)), "in [0, 1] (divide percentages by 100)")
    _refuse("correct", marks, ~((marks == 0) | (marks == 1)), "0 or 1 (leave unjudged answers out)")
    # Floats from 0 to 1 are ordered as their bits are, and need no sign: moved up by one bit (which makes
    # 0.0 of -0.0) they leave room for the mark, and one plain sort does what an argsort and gathers would.
    key = (values.view(np.uint64) << 1).view(np.int64)
    key |= marks == 1
    key.sort()
    bits, is_first = key >> 1, np.ones(key.size, dtype=np.bool_)
    is_first[1:] = bits[1:] != bits[:-1]
    start = np.flatnonzero(is_first)
    key &= 1
    return Outcomes(
        bits[start].view(np.float64), np.diff(start, append=key.size), np.add.reduceat(key, start)
    )


def _refuse(name: str, values: FloatArray, bad: BoolArray, rule: str) -> None:
    if bad.any():
        index = int(bad.argmax())
        raise DataError(f"{name}[{index}] must be {rule}; got {values[index]}")
