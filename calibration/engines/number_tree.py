"""The confidences a reply can state, as paths of tokens, and the probability of writing each.

Engines differ in how they get at a token's log-probability; which ones are needed, and what becomes of
them, is said here.
"""

import math
from collections.abc import Mapping, Sequence

from calibration.confidence import GRID

TokenPath = tuple[int, ...]
"""Token ids, from where the number begins."""

STATED_TEXTS = tuple(f"{value:.2f}" for value in GRID) + tuple(f"0.{d}" for d in range(10)) + ("1.0", "1")
"""Every way of writing a confidence with at most two decimals."""


class NumberTree:
    """The token paths of all numbers that can be stated.

    `asks` says which log-probabilities decide the numbers: behind each path that a number goes on from, the
    tokens that it may go on with.
    """

    def __init__(self, paths: Mapping[str, TokenPath], digits: Sequence[int]) -> None:
        """Arrange the paths.

        Args:
            paths: Token ids of each number's text.
            digits: Ids of the tokens that would continue a number.
        """
        self._paths = dict(paths)
        onward: dict[TokenPath, set[int]] = {}
        for path in paths.values():
            for depth, token in enumerate(path):
                onward.setdefault(path[:depth], set()).add(token)
        # "0.9" is this number only where no further digit follows, and "1" where no ".0" does.
        for path in paths.values():
            if path in onward:
                onward[path].update(digits)
        self.asks: dict[TokenPath, tuple[int, ...]] = {
            path: tuple(sorted(onward[path])) for path in sorted(onward)
        }

    @property
    def depth(self) -> int:
        """Tokens of the longest number."""
        return max(len(path) for path in self._paths.values())

    def grid(self, logprobs: Mapping[TokenPath, Mapping[int, float]]) -> tuple[float, ...]:
        """Chain the steps of every number into its probability.

        Args:
            logprobs: Natural log-probability of every token that `asks` names, behind the path it names.

        Returns:
            101 probabilities of 0.00 ... 1.00; their sum is below 1 by what would have gone to other text.

        >>> tree = NumberTree({"0.9": (5, 9), "1": (1,), "1.0": (1, 0)}, digits=[0, 9])
        >>> tree.asks
        {(): (1, 5), (1,): (0, 9), (5,): (9,)}
        >>> half = math.log(0.5)
        >>> grid = tree.grid({(): {1: half, 5: half}, (1,): {0: half, 9: half}, (5,): {9: half}})
        >>> grid[90], grid[100]  # 0.9 is 1/2 * 1/2; 1.0 likewise, and nothing is left for a bare 1
        (0.25, 0.25)
        """
        cells = [0.0] * len(GRID)
        for text, path in self._paths.items():
            chance = math.exp(math.fsum(logprobs[path[:d]][token] for d, token in enumerate(path)))
            if path in self.asks:
                chance *= max(
                    0.0, 1 - math.fsum(math.exp(logprobs[path][token]) for token in self.asks[path])
                )
            cells[round(float(text) * 100)] += chance
        return tuple(min(1.0, cell) for cell in cells)
