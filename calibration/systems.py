"""A model read in one way: its confidences and marks, question by question, raw and behind a map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from calibration.errors import DataError
from calibration.maps import Platt, cross_fit, fit_platt
from calibration.metrics.inference import Graded
from calibration.metrics.outcomes import BoolArray, FloatArray, Outcomes, tally
from calibration.metrics.scores import brier_skill

READABLE = 0.99
"""Least share of answers with a readable confidence."""
ENOUGH_TO_FIT = 20
"""Fewer graded answers than this fit no map."""

MapName: TypeAlias = Literal["none", "platt", "platt_crossfit"]


@dataclass(frozen=True)
class Scores:
    """One system on one split, question by question."""

    ids: tuple[str, ...]
    confidence: FloatArray
    """Shape [n], in [0, 1]; nan where none could be read."""
    correct: FloatArray
    """Shape [n], 0 or 1; nan where the answer could not be judged."""
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What kind of question each is, by what they are sorted by: {"topic": ("Art", "Sports", ...)}."""

    def __post_init__(self) -> None:
        """Refuse columns of different lengths and repeated questions."""
        columns = (self.ids, self.confidence, self.correct, *self.kinds.values())
        if len({len(column) for column in columns}) != 1:
            lengths = ", ".join(str(len(column)) for column in columns)
            raise DataError(f"the columns of scores must be equally long; got lengths {lengths}")
        if len(set(self.ids)) != len(self.ids):
            repeated = next(i for i in self.ids if self.ids.count(i) > 1)
            raise DataError(f"each question must be answered once; {repeated!r} is answered several times")

    @property
    def judged(self) -> BoolArray:
        """Which answers have a mark."""
        return ~np.isnan(self.correct)

    @property
    def usable(self) -> BoolArray:
        """Which answers have a mark and a confidence."""
        return self.judged & ~np.isnan(self.confidence)

    def where(self, keep: BoolArray) -> Graded:
        """Some of the answers, for statistics."""
        ids = tuple(question for question, kept in zip(self.ids, keep, strict=True) if kept)
        return Graded(ids, self.confidence[keep], self.correct[keep])

    def outcomes(self) -> Outcomes:
        """The usable answers, tallied."""
        return tally(self.confidence[self.usable], self.correct[self.usable])


@dataclass(frozen=True)
class System:
    """A model read in one way, with its scores on each split."""

    name: str
    readout: str
    scores_by_split: Mapping[str, Scores]
    map: MapName = "none"
    span_rule: str | None = None
    """Which tokens were the answer's own, where token probabilities were read."""

    def on(self, split: str) -> Scores:
        """The scores on one split.

        Raises:
            DataError: There are none.
        """
        if split not in self.scores_by_split:
            raise DataError(
                f"{self.name} ({self.readout}) must have answers on split {split!r}; "
                f"got {', '.join(self.scores_by_split) or 'none'}"
            )
        return self.scores_by_split[split]


def fitted_platt(system: System) -> Platt | None:
    """The system's Platt map, fitted on its calibration split; None when that is missing or too small."""
    scores = system.scores_by_split.get("calibration")
    if scores is None or scores.usable.sum() < ENOUGH_TO_FIT:
        return None
    return fit_platt(scores.confidence[scores.usable], scores.correct[scores.usable])


def with_platt(system: System) -> System | None:
    """The system behind its own Platt map, fitted on the calibration split.

    Without a usable calibration split the test split is cross-fitted by question instead, and no other
    split is kept. None when that is too small as well.
    """
    fitted = fitted_platt(system)
    if fitted is None:
        return with_crossfit(system)
    mapped = {
        split: replace(scores, confidence=fitted(scores.confidence))
        for split, scores in system.scores_by_split.items()
    }
    return replace(system, scores_by_split=mapped, map="platt")


def with_crossfit(system: System) -> System | None:
    """The system's test split with Platt maps cross-fitted by question; None when it is too small."""
    scores = system.on("test")
    if scores.usable.sum() < ENOUGH_TO_FIT:
        return None
    return replace(system, scores_by_split={"test": _crossfit(scores)}, map="platt_crossfit")


def _crossfit(scores: Scores) -> Scores:
    graded, mapped = scores.where(scores.usable), scores.confidence.copy()
    if len(set(graded.confidence.tolist())) == 1:
        # Its map is the accuracy of the other folds, lower the better a fold is: it would rank them wrongly.
        mapped[scores.usable] = graded.correct.mean()
    else:
        mapped[scores.usable] = cross_fit(fit_platt, graded.ids, graded.confidence, graded.correct)
    return replace(scores, confidence=mapped)


def best_base(candidates: Sequence[System]) -> System:
    """The base under the readout that a post-hoc map makes most of, chosen without the test split.

    Highest Brier skill on the validation split after Platt; without a validation split, on the
    calibration split, cross-fitted. Brier skill and not Brier score, because two ways of asking give
    different answers, and the less accurate ones would win. A readout that fails on more than 1 % of the
    answers is no candidate.

    Args:
        candidates: The base under each readout; the first is taken when nothing allows a choice.
    """
    splits = [s for s in ("validation", "calibration") if all(s in c.scores_by_split for c in candidates)]
    if not splits:
        return candidates[0]
    skills = [skill_after_map(system, splits[0]) for system in candidates]
    return candidates[int(np.argmax(skills))]


def skill_after_map(system: System, split: str) -> float:
    """Brier skill on a split behind a Platt map; -inf where none can be fitted or 1 % cannot be read."""
    scores = system.on(split)
    if scores.usable.sum() < max(ENOUGH_TO_FIT, READABLE * scores.judged.sum()):
        return -np.inf
    fitted = None if split == "calibration" else fitted_platt(system)
    mapped = _crossfit(scores) if fitted is None else replace(scores, confidence=fitted(scores.confidence))
    skill = float(brier_skill(mapped.outcomes()))
    return -np.inf if np.isnan(skill) else skill
