"""A language model that judges, and rules that look over its shoulder."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from calibration.judges.compatible import OpenAiCompatible
from calibration.judges.exact import Exact
from calibration.judges.gemini import Gemini
from calibration.judges.gemini_batch import GeminiBatch
from calibration.judges.language import LanguageJudge
from calibration.judges.protocol import Item, Judge
from calibration.records import Question, Verdict
from calibration.schema import Schema

_SURE = frozenset(("identical", "same words", "same date", "same number"))
"""Rules of `exact` under which an answer that it calls right hardly ever is wrong."""
_FIRST_SHARE = 0.9
"""Share of the progress that the first votes make."""

ModelJudge = Annotated[Gemini | GeminiBatch | OpenAiCompatible, Field(discriminator="kind")]


class Cascade(Schema):
    """Has a model judge every answer, and judge again where the rules of `exact` disagree.

    Two votes that agree stand, whatever the rules say. Where they differ, the one that the rules agree with
    stands. The rules alone never decide, and an answer that the model could not judge stays unjudged. Votes
    of one model are alike, so the second corrects little more than chance; what it costs is paid for the
    disagreements only, and the reason of each verdict names them, for a person to look at.
    """

    kind: Literal["cascade"] = "cascade"
    first: Exact = Exact()
    """The rules."""
    model: ModelJudge
    """The model."""
    trust_exact: bool = False
    """Do not ask the model where the rules find the answer identical, or the same words, date or number. That
    saves its price for most right answers. Its verdict there is then never heard: what the rules let pass
    (.007 of the wrong answers, see `exact`) stays, and no disagreement shows it."""

    @property
    def version(self) -> str:
        """Names the rules and the model."""
        trust = "trusted " if self.trust_exact else ""
        return f"cascade@1({trust}{self.first.version}, {self.model.version})"

    def identity(self) -> JsonValue:
        """Both judges by what decides their verdicts, and which of them is asked."""
        return {
            "kind": self.kind,
            "version": self.version,
            "first": self.first.identity(),
            "model": self.model.identity(),
            "trust_exact": self.trust_exact,
        }

    def check(self, questions: Sequence[Question]) -> None:
        """As of both judges."""
        self.first.check(questions)
        self.model.check(questions)

    async def judge(self, items: Sequence[Item], *, progress: Callable[[float, str], None]) -> list[Verdict]:
        """One verdict for each item, in their order.

        Raises:
            ConfigurationError: Something is known to be wrong before the first request.
            DataError: Two items have the same id and other texts.
            JudgeError: Judging had to stop; everything that was answered is kept.
        """
        rules = await self.first.judge(items, progress=_untold)
        asked = [index for index, rule in enumerate(rules) if not (self.trust_exact and _is_sure(rule))]
        votes = dict(zip(asked, await self._vote(items, asked, 0, progress), strict=True))
        doubted = [index for index, vote in votes.items() if _differ(vote, rules[index])]
        second = dict(zip(doubted, await self._vote(items, doubted, 1, progress), strict=True))
        progress(1.0, f"{len(items)} answers, {len(asked)} asked, {len(doubted)} asked twice")
        verdicts = [_decided(rule, votes.get(index), second.get(index)) for index, rule in enumerate(rules)]
        return [verdict.model_copy(update={"judge": self.version}) for verdict in verdicts]

    async def _vote(
        self, items: Sequence[Item], chosen: Sequence[int], vote: int, progress: Callable[[float, str], None]
    ) -> list[Verdict]:
        """The model's votes on some of the items."""
        start, share = (0.0, _FIRST_SHARE) if vote == 0 else (_FIRST_SHARE, 1 - _FIRST_SHARE)
        note = "first votes: " if vote == 0 else "second votes: "
        return await self.model.judge(
            [items[index] for index in chosen],
            progress=lambda done, text: progress(start + share * done, note + text),
            vote=vote,
        )


def model_behind(judge: Judge) -> LanguageJudge | None:
    """The judge that asks a model, which may be another judge's; None where no model is asked."""
    asked = judge.model if isinstance(judge, Cascade) else judge
    return asked if isinstance(asked, LanguageJudge) else None


def _untold(done: float, note: str) -> None:
    """The rules take no time."""


def _is_sure(rule: Verdict) -> bool:
    return rule.label == "correct" and rule.reason in _SURE


def _differ(one: Verdict, other: Verdict) -> bool:
    """Whether both say something, and one says right and the other does not."""
    return None not in (one.is_correct, other.is_correct) and one.is_correct != other.is_correct


def _decided(rule: Verdict, first: Verdict | None, second: Verdict | None) -> Verdict:
    """What comes of the rules and up to two votes; the reason says how."""
    if first is None:
        return rule.model_copy(update={"reason": f"exact: {rule.reason}, not asked further"})
    if second is None:
        return first
    against = f"exact: {rule.reason}"
    if second.label == "unjudged":
        reason = f"against {against}; no second vote ({second.reason})"
        return first.model_copy(update={"reason": reason})
    if _differ(first, second):
        return second.model_copy(update={"reason": f"second vote, with {against}, against the first"})
    return first.model_copy(update={"reason": f"both votes, against {against}"})
