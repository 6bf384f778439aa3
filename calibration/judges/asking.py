"""One round of judging by a language model: what is asked, asked again, given up and kept.

The rules, in one place:

- A case whose verdict is in the ledger is not asked. Equal cases are asked once.
- `throttled` makes everybody wait and costs the case nothing.
- `failed` and `lost` are asked again after a pause, six times in all.
- `blocked` is asked once more, `cut` once more with four times the room, `unreadable` twice more. A case
  that is unjudged after that stays so in the ledger, because it was paid for.
- `rejected`, and six failures, leave a case unjudged until the next round.
- A service is to blame, and the round stops, when it answers `fatal` or with another model, refuses for too
  long, fails for twenty cases in a row, or for a quarter of all. The end of the money stops it, too. Then, as
  on cancellation, nothing more is sent, and what is under way is waited for and kept.
- A case is to blame for the trouble that it has met in an earlier round, too: it is asked as if it had
  failed, says nothing of the service, and ends unjudged. So no case can stop every round.

No error becomes a label.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from pydantic import Field

from calibration.errors import DataError, JudgeError
from calibration.judges.cases import Case, JudgeProtocol, guard
from calibration.judges.ledger import Ledger, Outcome, Ruling
from calibration.judges.models import family
from calibration.judges.money import Money
from calibration.judges.prompts import SIMPLEQA_JUDGE
from calibration.judges.protocol import Item
from calibration.judges.provider import Provider, SendError, Usage
from calibration.judges.replies import PARSER, read_verdict
from calibration.judges.window import Window
from calibration.records import Verdict
from calibration.schema import Schema

FAILURE = "failure"
_KIND = {"failed": FAILURE, "lost": FAILURE}
AGAIN = {"blocked": 1, "cut": 1, "unreadable": 2, FAILURE: 5, "rejected": 0, "fatal": 0, "drifted": 0}
"""How often a case is asked again after each kind of outcome."""
BLAMING = {name: (name,) for name in ("throttled", "rejected", "fatal", "drifted")} | dict.fromkeys(
    ("failed", "lost"), ("failed", "lost")
)
"""Outcomes that can stop a round, and which of an earlier round are the same trouble."""
MORE_ROOM = 4
STREAK = 20
"""So many cases fail for the first time without an answer in between, the last of them sent after the first
has failed, and the round stops."""
FAILING_SHARE, FAILING_FLOOR = 0.25, STREAK
"""More cases than both, as a share of all and as a number, fail for the first time, and the round stops."""
LONGEST_BACKOFF = 60.0
SHOWN_SECONDS = 0.2


class Limits(Schema):
    """How a round of judging goes. Nothing of it decides a verdict, or is part of a cache key."""

    concurrency: int = Field(default=100, ge=1, le=1000)
    """The most requests at a time. It begins with 20 and finds out how many the service takes."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """How long one request may take."""
    retry_seconds: float = Field(default=1.0, gt=0)
    """Pause before a failed request is repeated; doubles each time, up to a minute."""
    patience_seconds: float = Field(default=600.0, gt=0)
    """How long a service that takes no request at all is waited for before judging stops."""
    max_usd: float | None = Field(default=None, ge=0)
    """US dollars that asking this model may cost in all, over every run with this store; judging stops before
    it passes them."""
    retry_unjudged: bool = False
    """Ask again, and pay again, where an earlier run got replies but no verdict: blocked, cut off,
    unreadable."""


@dataclass
class Tally:
    """What has happened in a round."""

    total: int
    done: int = 0
    kept: int = 0
    """Verdicts that were in the ledger, or that an equal case in the round has got."""
    asked: int = 0
    """Cases that were asked to their end."""
    unjudged: int = 0
    throttled: int = 0
    failing: int = 0
    """Cases that failed for the first time."""
    usd: float = 0.0
    unknown: int = 0
    """Requests that may have been billed, and nobody said for how much."""


class Round:
    """Judges the answers of one stage, each by a worker of its own, with one window and one purse."""

    def __init__(
        self,
        protocol: JudgeProtocol,
        limits: Limits,
        money: Money,
        provider: Provider,
        ledger: Ledger,
        progress: Callable[[float, str], None],
        vote: int = 0,
    ) -> None:
        """Prepare; nothing is sent yet."""
        self.protocol, self.limits, self.vote, self.money = protocol, limits, vote, money
        self.provider, self.ledger = provider, ledger
        self.parser = f"{PARSER} {provider.reader}"
        self.window = Window(limits.concurrency)
        self.tally = Tally(0)
        self._progress, self._began, self._shown = progress, time.monotonic(), float("-inf")
        self._asking: dict[str, asyncio.Future[Ruling]] = {}
        self._given_up: dict[str, Ruling] = {}
        """Cases that are not asked again in this round, although the ledger holds no verdict of some."""
        self._sending: set[asyncio.Task[None] | None] = set()
        self._settled = asyncio.Event()
        self._is_stopping = False
        self._streak, self._streak_began = 0, 0.0
        self._first_attempt = ledger.next_attempt()

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict for each item, in their order.

        Raises:
            DataError: Two items have the same id and other texts.
            JudgeError: The round had to stop; what was answered is in the ledger.
        """
        check_ids(items)
        self.tally.total = len(items)
        verdicts: dict[int, Verdict] = {}
        queue = iter(range(len(items)))
        workers = [
            asyncio.create_task(self._work(queue, items, verdicts))
            for _ in range(min(self.limits.concurrency, len(items)))
        ]
        try:
            if workers:
                await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._is_stopping = True
            for worker in workers:
                if worker not in self._sending:
                    worker.cancel()
            # What is under way is paid for: wait for it, as long as a request may take.
            ends = await asyncio.gather(*workers, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end
        self._report()
        return [verdicts[index] for index in range(len(items))]

    async def _work(self, queue: Iterator[int], items: Sequence[Item], verdicts: dict[int, Verdict]) -> None:
        for index in queue:
            ruling = await self._rule(Case.of(items[index]))
            verdicts[index] = Verdict(
                question_id=items[index].question_id, judge=self.protocol.version, **asdict(ruling)
            )
            self.tally.done += 1
            self.tally.unjudged += ruling.label == "unjudged"
            if self._is_stopping:
                return
            if time.monotonic() - self._shown >= SHOWN_SECONDS:
                self._report()
            await asyncio.sleep(0)  # thousands of kept verdicts must not hold up the loop

    async def _rule(self, case: Case) -> Ruling:
        """What comes of a case: by rule, from the ledger, from the worker that is asking it, or by asking."""
        if marked := guard(case):
            return Ruling(*marked)
        key = self.protocol.key(case, self.vote)
        if key in self._asking:
            ruling = await asyncio.shield(self._asking[key])
            self.tally.kept += 1
            return ruling
        if kept := self._given_up.get(key) or self._kept(key):
            self.tally.kept += 1
            return kept
        mine = self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            ruling = await self._ask(key, case)
            mine.set_result(ruling)
            if ruling.label == "unjudged":
                self._given_up[key] = ruling
            self.tally.asked += 1
            return ruling
        finally:
            mine.cancel()  # does nothing once there is a result
            del self._asking[key]

    def _kept(self, key: str) -> Ruling | None:
        """The ledger's verdict; where an older reader made it, what today's makes of the same replies."""
        found = self.ledger.find(key)
        if found is None:
            return None
        ruling, parser = found
        if parser != self.parser:
            bodies = self.ledger.bodies(key)
            fresh = [(attempt, again) for attempt, body in bodies if (again := self._read(body).ruling)]
            attempt, ruling = fresh[0] if fresh else (bodies[0][0], ruling)
            self.ledger.relabel(key, ruling, self.parser, attempt)
        return None if self.limits.retry_unjudged and ruling.label == "unjudged" else ruling

    async def _ask(self, key: str, case: Case) -> Ruling:
        """Ask until there is a verdict, or no more use in asking."""
        prompt, room = SIMPLEQA_JUDGE.render(asdict(case)), self.protocol.max_output_tokens
        tries: Counter[str] = Counter()
        while True:
            at_most = Usage(prompt=len(prompt.encode()), output=room)  # a token has one byte at least
            entered = await self._admit(at_most)
            attempt = self.ledger.begin(key, self.protocol.provider, self.protocol.model, at_most)
            outcome = await self._send(attempt, key, prompt, room)
            is_old = self._has_met(key, outcome)
            kind = (
                FAILURE if is_old and outcome.name == "throttled" else _KIND.get(outcome.name, outcome.name)
            )
            tries[kind] += 1
            ruling = ruling_on(outcome, kind, tries[kind])
            self.ledger.end(attempt, key, outcome, ruling if outcome.is_answer else None, self.parser)
            is_news = not is_old and (kind == "throttled" or tries[kind] == 1)
            self._settle(entered, outcome, at_most, is_news=is_news)
            if ruling:
                return ruling
            if self._is_stopping:
                raise asyncio.CancelledError
            room = room * MORE_ROOM if kind == "cut" else room
            if kind == FAILURE:
                await self._back_off(tries[kind])

    def _has_met(self, key: str, outcome: Outcome) -> bool:
        """Whether a case has met this trouble in an earlier round: it then says nothing of the service."""
        same = BLAMING.get(outcome.name)
        return same is not None and self.ledger.has_met(key, same, before=self._first_attempt)

    async def _admit(self, at_most: Usage) -> float:
        """Wait for room in the window and in the purse, and take it; return when that was.

        Raises:
            JudgeError: The purse will not have room again.
        """
        while True:
            entered = await self.window.enter()
            if self._is_stopping:
                raise asyncio.CancelledError
            if self.money.allows(at_most):
                self.money.hold(at_most)
                self._sending.add(asyncio.current_task())
                return entered
            self.window.leave()
            if not self._sending:
                raise self._stop(
                    f"judging must stay within max_usd = {self.limits.max_usd}; {self.money.spent:.4f} are "
                    "spent on this model, and one more request could pass it. Raise max_usd"
                )
            self._settled.clear()
            await self._settled.wait()

    async def _send(self, attempt: int, key: str, prompt: str, room: int) -> Outcome:
        """Send one request and read what comes back, whatever it is."""
        try:
            async with asyncio.timeout(self.limits.timeout_seconds):
                body = await self.provider.send(prompt, room)
        except TimeoutError:
            return Outcome("lost", f"no reply within {self.limits.timeout_seconds:g} s")
        except SendError as error:
            return Outcome(error.trouble, error.detail, error.status, error.retry_after)
        except asyncio.CancelledError:
            self.ledger.end(attempt, key, Outcome("lost", "not waited for"), None, self.parser)
            raise
        return self._read(body)

    def _read(self, body: str) -> Outcome:
        """What a reply comes to."""
        try:
            reply = self.provider.read(body)
        except SendError as error:
            return Outcome(error.trouble, error.detail, body=body)
        served = reply.model_version
        if served is not None and family(served) != family(self.protocol.model):
            return Outcome("drifted", served, reply=reply, body=body)
        if reply.end == "blocked":
            return Outcome("blocked", reply.why, reply=reply, body=body)
        try:
            label, extracted = read_verdict(reply.text)
        except ValueError as error:
            name, detail = ("cut", reply.why) if reply.end == "cut" else ("unreadable", str(error))
            return Outcome(name, detail, reply=reply, body=body)
        ruling = Ruling(label, extracted=extracted, model_version=served)
        return Outcome("judged", reply=reply, body=body, ruling=ruling)

    def _settle(self, entered: float, outcome: Outcome, at_most: Usage, *, is_news: bool) -> None:
        """Account for a request that is over, and draw the consequences for all.

        Args:
            entered: When it was let in.
            outcome: How it ended.
            at_most: What it could have used.
            is_news: Whether it says something of the service, and not of a case with which there was such
                trouble before.

        Raises:
            JudgeError: The round must stop.
        """
        self.tally.unknown += outcome.used is None
        self.tally.usd += self.money.settle(at_most, at_most if outcome.used is None else outcome.used)
        try:
            self._draw_consequences(entered, outcome, is_news=is_news)
        finally:
            self.window.leave()
            self._sending.discard(asyncio.current_task())
            self._settled.set()

    def _draw_consequences(self, entered: float, outcome: Outcome, *, is_news: bool) -> None:
        if outcome.is_answer:
            self.window.answered(entered)
            self._streak = 0
        elif not is_news:
            return
        elif outcome.name == "throttled":
            self.tally.throttled += 1
            self.window.refused(entered, outcome.retry_after)
            if (seconds := self.window.unanswered_for()) > self.limits.patience_seconds:
                raise self._stop(
                    f"{self._who} must take requests; it refuses them for {seconds:.0f} s", outcome
                )
        elif outcome.name == "fatal":
            raise self._stop(f"{self._who} must accept requests; it refuses every one", outcome)
        elif outcome.name == "drifted":
            raise self._stop(f"{self._who} must answer itself; another model answered in its place", outcome)
        else:
            self._note_failing(entered, outcome)

    def _note_failing(self, entered: float, outcome: Outcome) -> None:
        """One case more has failed for the first time: is it the service that fails?

        Raises:
            JudgeError: It is.
        """
        self.tally.failing += 1
        self._streak += 1
        if self._streak == 1:
            self._streak_began = time.monotonic()
        # One fault can end all requests under way at once; it takes one that was sent later to tell.
        if self._streak >= STREAK and entered > self._streak_began:
            raise self._stop(f"{self._who} must answer; {STREAK} requests in a row failed", outcome)
        if self.tally.failing > max(FAILING_FLOOR, FAILING_SHARE * self.tally.total):
            raise self._stop(f"{self._who} must answer; {self.tally.failing} requests failed", outcome)

    async def _back_off(self, tries: int) -> None:
        pause = min(self.limits.retry_seconds * 2 ** (tries - 1), LONGEST_BACKOFF)
        await asyncio.sleep(pause * (0.5 + random.random() / 2))  # noqa: S311 - spreads requests, hides nothing

    @property
    def _who(self) -> str:
        return f"judge {self.protocol.provider} {self.protocol.model}"

    def _stop(self, why: str, outcome: Outcome | None = None) -> JudgeError:
        """End the round, and say why, the last word of the service, and what is kept."""
        self._is_stopping = True
        latest = f" ({outcome.detail})" if outcome else ""
        judged = self.tally.done - self.tally.unjudged
        return JudgeError(
            f"{why}{latest}. {judged} of {self.tally.total} answers have a verdict so far, and none is lost: "
            "run it again to go on from here"
        )

    def _report(self) -> None:
        tally, now = self.tally, time.monotonic()
        self._shown = now
        rate = tally.asked / max(now - self._began, 1e-9)
        parts = [f"{tally.done} of {tally.total}", f"{tally.kept} kept", f"{rate:.1f}/s"]
        parts.append(f"window {self.window.limit:.0f}")
        parts += [f"{tally.throttled} throttled"] if tally.throttled else []
        parts += [f"{tally.unjudged} unjudged"] if tally.unjudged else []
        parts.append(self._cost())
        self._progress(tally.done / tally.total if tally.total else 1.0, ", ".join(parts))

    def _cost(self) -> str:
        """Dollars of this round, and what they will have come to if the rest is like what is done."""
        if not self.money.is_known:
            return "price unknown"
        tally = self.tally
        projected = tally.usd * tally.total / tally.done if tally.done else 0.0
        unknown = f", cost of {tally.unknown} unknown and counted at most" if tally.unknown else ""
        return f"${tally.usd:.4f} of about ${projected:.4f}{unknown}"


def ruling_on(outcome: Outcome, kind: str, tries: int) -> Ruling | None:
    """The ruling on a case after so many outcomes of a kind; None if it is to be asked again."""
    if kind in AGAIN and tries > AGAIN[kind]:
        return Ruling("unjudged", f"{outcome.name}: {outcome.detail}")
    return outcome.ruling


def check_ids(items: Sequence[Item]) -> None:
    """Refuse one id for two different answers."""
    seen: dict[str, Item] = {}
    for item in items:
        if seen.setdefault(item.question_id, item) != item:
            raise DataError(
                f"each answer must have an id of its own; {item.question_id!r} stands for "
                f"{seen[item.question_id].answer[:60]!r} and for {item.answer[:60]!r}. Number the rows"
            )
