"""Gemini by its Batch API: half the price, for answers within a day instead of at once.

The same protocol, keys and rules as `gemini`, so either uses the verdicts of the other. What is different is
that a job can be asked for again. Its requests and a label of our own for it are written down before it is
sent, and its name before it is waited for. So whatever ends the process, the same job is collected later and
nothing is paid twice: by its name, or if the process ended before the name came, by its label.
"""

import asyncio
import json
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, JsonValue

from calibration.artifacts import Store
from calibration.errors import JudgeError
from calibration.judges.asking import AGAIN, FAILURE, LONGEST_BACKOFF, MORE_ROOM, Round, check_ids
from calibration.judges.cases import Case, guard
from calibration.judges.gemini import BATCH, BATCH_SHARE, Gemini, GeminiWire
from calibration.judges.language import LanguageJudge
from calibration.judges.ledger import Job, Ledger, Outcome, Ruling, opened
from calibration.judges.models import ModelFacts
from calibration.judges.prompts import SIMPLEQA_JUDGE
from calibration.judges.protocol import Item
from calibration.judges.provider import Connection, SendError, Trouble, Usage, whole_text, without_key
from calibration.records import Question, Verdict

T = TypeVar("T")

LARGEST = 15_000_000
"""Bytes of one job; the service takes 20 MB."""
FRAME = 2_000
"""Bytes of a request without its prompt, generously."""
_SUCCEEDED = frozenset(("JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED"))
_ENDED = _SUCCEEDED | {"JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}
_TROUBLES: dict[int, Trouble] = {
    **dict.fromkeys((3, 9, 11, 12, 400), "rejected"),
    **dict.fromkeys((5, 7, 16, 401, 403, 404), "fatal"),
}
"""By the code of a request's own error, of gRPC or HTTP; any other is `failed`."""


class GeminiBatch(LanguageJudge):
    """Asks a Gemini model in batches, at half the price and with up to a day to wait.

    Ended in the meantime, it goes on waiting for the same jobs when it is run again. The key comes from
    GEMINI_API_KEY or GOOGLE_API_KEY and is kept nowhere.
    """

    provider: ClassVar[str] = Gemini.provider

    kind: Literal["gemini-batch"] = "gemini-batch"
    model: str = Field(default="gemini-3.5-flash-lite", min_length=1)
    """The model that judges."""
    concurrency: int = Field(default=100, ge=1, le=100)
    """The most jobs at a time."""
    timeout_seconds: float = Field(default=300.0, gt=0)
    """How long sending a job, or asking for one, may take."""
    requests_per_job: int = Field(default=5000, ge=1)
    """The most answers in one job."""
    poll_seconds: float = Field(default=30.0, gt=0)
    """Pause between two looks at the jobs."""

    def check(self, questions: Sequence[Question]) -> None:
        """As of `gemini`."""
        self._live.check(questions)

    def identity(self) -> JsonValue:
        """That of `gemini`: by which way it is asked changes no verdict."""
        return self._live.identity()

    @property
    def purse(self) -> Mapping[str, float]:
        """That of `gemini`."""
        return self._live.purse

    @property
    def priced(self) -> ModelFacts | None:
        """At the prices of a batch."""
        return self.known.at(BATCH_SHARE) if self.known else None

    def connect(self) -> Connection:
        """A connection that opens when something is sent."""
        return BatchWire(self.model, self.protocol.thinking)

    async def judge(
        self, items: Sequence[Item], *, progress: Callable[[float, str], None], vote: int = 0
    ) -> list[Verdict]:
        """As every judge that asks a model; a job that ended without results is a JudgeError, too."""
        self.check(())
        wire = BatchWire(self.model, self.protocol.thinking)
        async with wire:
            async with opened(Store.from_environment().root, lambda words: progress(0.0, words)) as ledger:
                judging = BatchRound(self, wire, ledger, progress, vote)
            return await judging.judge(items)

    @property
    def _live(self) -> Gemini:
        return Gemini(**{name: getattr(self, name) for name in LanguageJudge.model_fields if name != "kind"})


@dataclass(frozen=True)
class _Request:
    """A case to be asked, and with how much room."""

    key: str
    prompt: str
    room: int

    @property
    def at_most(self) -> Usage:
        """Tokens that it can use at most: each has one byte at least."""
        return Usage(prompt=len(self.prompt.encode()), output=self.room)

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return len(json.dumps(self.prompt)) + FRAME


class BatchRound(Round):
    """Judges the answers of one stage in jobs: sends what is new, waits for what is under way.

    The ledger is held only while something is sent or collected, so that other rounds can use it, and even
    these jobs, during the hours between.
    """

    def __init__(
        self,
        judge: GeminiBatch,
        wire: "BatchWire",
        ledger: Ledger,
        progress: Callable[[float, str], None],
        vote: int,
    ) -> None:
        """Prepare; nothing is sent yet."""
        super().__init__(judge.protocol, judge, judge.money(ledger), wire, ledger, progress, vote)
        self._judge, self._wire = judge, wire
        self._rulings: dict[str, Ruling] = {}
        self._requests: dict[str, _Request] = {}
        self._tries: dict[str, Counter[str]] = {}
        self._answers: Counter[str] = Counter()
        self._under_way: list[Job] = []

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict for each item, in their order.

        Raises:
            DataError: Two items have the same id and other texts.
            JudgeError: The round had to stop; jobs that are under way go on, and the next round finds them.
        """
        check_ids(items)
        self.tally.total = len(items)
        keys = [self._enter(Case.of(item)) for item in items]
        self._answers = Counter(keys)
        while self._requests:
            async with opened(self.ledger.path.parent) as self.ledger:
                is_news = await self._collect_jobs()
                await self._send_jobs()
            self._count()
            if self._requests and not is_news:
                await asyncio.sleep(self._judge.poll_seconds)
        self._count()
        return [
            Verdict(question_id=item.question_id, judge=self.protocol.version, **asdict(self._rulings[key]))
            for item, key in zip(items, keys, strict=True)
        ]

    def _enter(self, case: Case) -> str:
        """Rule on a case without asking, or remember to ask it; return its key."""
        key = self.protocol.key(case, self.vote)
        if marked := guard(case):
            self._rulings[key] = Ruling(*marked)
        else:
            prompt = SIMPLEQA_JUDGE.render(asdict(case))
            self._requests.setdefault(key, _Request(key, prompt, self.protocol.max_output_tokens))
        return key

    async def _collect_jobs(self) -> bool:
        """Take what is in the ledger by now, and file the jobs that have ended; whether there was one."""
        for key in list(self._requests):
            if kept := self._kept(key):
                self._rule_on(key, kept)
                self.tally.kept += self._answers[key]
        ended, self._under_way = 0, []
        for job in self.ledger.open_jobs(BATCH, self.protocol.model):
            if not self._requests.keys() & set(job.requests.values()):
                continue  # of another round, which may be over
            name = job.name or await self._patiently(partial(self._wire.find, job.label))
            if name is None:
                self._end_all(job, Outcome("failed", "the job did not reach the service"))
                continue
            self.ledger.name_job(job.label, name)
            named = Job(job.label, name, job.requests)
            found = await self._patiently(partial(self._wire.get, name), named)
            if found.state in _ENDED:
                self._file(named, found)
                ended += 1
            else:
                self._under_way.append(named)
        return ended > 0

    def _rule_on(self, key: str, ruling: Ruling) -> None:
        self._rulings[key] = ruling
        self._requests.pop(key, None)

    async def _send_jobs(self) -> None:
        """Send what is not under way, as far as the purse and the service's limits allow.

        Raises:
            JudgeError: The purse has no room for one request, and nothing is under way that could give some.
        """
        sent = {key for job in self._under_way for key in job.requests.values()}
        queue = deque(request for key, request in self._requests.items() if key not in sent)
        while queue and len(self._under_way) < self.limits.concurrency:
            requests = self._fit(queue)
            if requests:
                self._under_way.append(await self._send_job(requests))
            elif self._under_way:
                return
            else:
                raise self._stop(
                    f"judging must stay within max_usd = {self.limits.max_usd}; {self.money.spent:.4f} are "
                    "spent on this model, and one more request could pass it. Raise max_usd"
                )

    def _fit(self, queue: deque[_Request]) -> list[_Request]:
        """Take from the queue what one job may hold and the purse can pay at most."""
        self.money = self._judge.money(self.ledger)  # what is under way counts as the most that it can cost
        requests: list[_Request] = []
        size, held = 0, Usage()
        while queue and len(requests) < self._judge.requests_per_job:
            size += queue[0].size
            most = queue[0].at_most
            held = Usage(prompt=held.prompt + most.prompt, output=held.output + most.output)
            if (requests and size > LARGEST) or not self.money.allows(held):
                break
            requests.append(queue.popleft())
        return requests

    async def _send_job(self, requests: list[_Request]) -> Job:
        """Write a job down, send it, and write down its name."""
        label = f"slm-calibration-{uuid.uuid4().hex}"
        planned = [(request.key, request.at_most) for request in requests]
        numbers = self.ledger.begin_job(label, BATCH, self.protocol.model, planned)
        numbered = dict(zip(numbers, requests, strict=True))
        job = Job(label, None, {number: request.key for number, request in numbered.items()})
        sending = self._wire.sending(label, {n: (r.prompt, r.room) for n, r in numbered.items()})
        name = await self._patiently(sending, job)
        self.ledger.name_job(label, name)
        return Job(label, name, job.requests)

    def _file(self, job: Job, found: "_Found") -> None:
        """Close every request of a job that has ended with what came of it.

        Raises:
            JudgeError: The job has no results, or one of them says that no request will do; the others are
                kept all the same.
        """
        if found.state not in _SUCCEEDED:
            # Parts of a job that was cancelled or ran out of time may have been done, and billed.
            trouble = "failed" if found.state == "JOB_STATE_FAILED" else "lost"
            self._end_all(job, Outcome(trouble, f"{found.state}: {found.why}"))
            raise self._stop(f"{self._who} must finish its jobs; {job.name} is {found.state}: {found.why}")
        stop = None
        for attempt, key in job.requests.items():
            outcome = self._outcome(found.replies.get(attempt))
            self._close(attempt, key, outcome)
            stop = outcome if outcome.name in ("fatal", "drifted") else stop
        if stop and stop.name == "drifted":
            raise self._stop(f"{self._who} must answer itself; another model answered in its place", stop)
        if stop:
            raise self._stop(f"{self._who} must accept requests; it refuses them", stop)

    def _close(self, attempt: int, key: str, outcome: Outcome) -> None:
        """Write down how one request ended; rule on its case, or leave it to be asked again."""
        kind = FAILURE if outcome.name in ("failed", "lost") else outcome.name
        tries = self._tries.setdefault(key, Counter())
        tries[kind] += 1
        ruling = outcome.ruling
        if kind in AGAIN and tries[kind] > AGAIN[kind]:
            ruling = Ruling("unjudged", f"{outcome.name}: {outcome.detail}")
        # Whoever asked the same in the meantime has got a verdict that others may have used.
        new = ruling if outcome.reply and not self._kept(key) else None
        self.ledger.end(attempt, key, outcome, new, self.parser)
        self.tally.unknown += outcome.used is None
        self.tally.usd += self.money.settle(Usage(), outcome.used or Usage())
        if key not in self._requests:
            return
        if ruling:
            self._rule_on(key, ruling)
            self.tally.asked += 1
        elif kind == "cut":
            before = self._requests[key]
            self._requests[key] = _Request(key, before.prompt, before.room * MORE_ROOM)

    def _outcome(self, reply: "str | SendError | None") -> Outcome:
        """What became of one request of a finished job."""
        if reply is None:
            return Outcome("lost", "no reply in the finished job")
        if isinstance(reply, SendError):
            return Outcome(reply.trouble, reply.detail, reply.status)
        return self._read(reply)

    async def _patiently(self, call: Callable[[], Awaitable[T]], job: Job | None = None) -> T:
        """Call the service, and again after a pause for as long as there is patience.

        Raises:
            JudgeError: It will not do, or the patience is at its end.
        """
        began, tries = time.monotonic(), 0
        while True:
            try:
                async with asyncio.timeout(self.limits.timeout_seconds):
                    return await call()
            except TimeoutError:
                error = SendError("lost", f"no reply within {self.limits.timeout_seconds:g} s")
            except SendError as caught:
                error = caught
            if error.trouble in ("fatal", "rejected"):
                raise self._refused(error, job)
            tries += 1
            pause = error.retry_after or min(self.limits.retry_seconds * 2 ** (tries - 1), LONGEST_BACKOFF)
            if time.monotonic() + pause - began > self.limits.patience_seconds:
                raise self._stop(f"{self._who} must answer; it does not ({error.detail})")
            await asyncio.sleep(pause)

    def _refused(self, error: SendError, job: Job | None) -> JudgeError:
        """Why there is no use in calling again; a job that was not taken, or is gone, is closed."""
        outcome = Outcome(error.trouble, error.detail, error.status)
        if job and job.name and error.status == 404:
            self._end_all(job, Outcome("lost", error.detail, error.status))
            return self._stop(f"{self._who} must know the job {job.name}; it is gone", outcome)
        if job and not job.name:
            self._end_all(job, outcome)
        return self._stop(f"{self._who} must accept requests; it refuses", outcome)

    def _end_all(self, job: Job, outcome: Outcome) -> None:
        for attempt, key in job.requests.items():
            self.ledger.end(attempt, key, outcome, None, self.parser)

    def _stop(self, why: str, outcome: Outcome | None = None) -> JudgeError:
        self._count()
        return super()._stop(why, outcome)

    def _count(self) -> None:
        """Bring the tally up to date and tell it."""
        tally = self.tally
        ruled = [(self._rulings[key], count) for key, count in self._answers.items() if key in self._rulings]
        tally.done = sum(count for _, count in ruled)
        tally.unjudged = sum(count for ruling, count in ruled if ruling.label == "unjudged")
        parts = [f"{tally.done} of {tally.total}", f"{tally.kept} kept"]
        parts.append(f"{len(self._under_way)} jobs under way")
        parts += [f"{tally.unjudged} unjudged"] if tally.unjudged else []
        parts.append(self._cost())
        self._progress(tally.done / tally.total if tally.total else 1.0, ", ".join(parts))


@dataclass(frozen=True)
class _Found:
    """A job as the service tells of it."""

    state: str
    why: str
    replies: dict[int, str | SendError]
    """By the number of the request."""


class BatchWire(GeminiWire):
    """The same client, and jobs instead of requests."""

    def sending(self, label: str, prompts: dict[int, tuple[str, int]]) -> Callable[[], Awaitable[str]]:
        """A call that sends a job and returns its name; however often it is called, there is one job.

        Args:
            label: Our name for it, and nobody else's.
            prompts: Prompt and room of each request, by its number.
        """
        from google.genai import types

        requests = [
            types.InlinedRequest(
                contents=prompt, config=self._config(room), metadata={"request": str(number)}
            )
            for number, (prompt, room) in prompts.items()
        ]
        sent = 0

        async def send() -> str:
            nonlocal sent
            sent += 1
            # It may have been taken although nobody said so; then it must not be sent a second time.
            if sent > 1 and (name := await self.find(label)):
                return name
            job = await self._call(
                lambda client: client.batches.create(
                    model=self._model, src=requests, config={"display_name": label}
                )
            )
            if job.name:
                return str(job.name)
            raise SendError("lost", "a job without a name")

        return send

    async def find(self, label: str) -> str | None:
        """The name of the job with this label; None when the service has none."""

        async def search(client: Any) -> str | None:  # noqa: ANN401 - the client's class
            async for job in await client.batches.list(config={"page_size": 100}):
                if job.display_name == label:
                    return str(job.name)
            return None

        found: str | None = await self._call(search)
        return found

    async def get(self, name: str) -> _Found:
        """How a job is, and when it has succeeded, its replies."""
        job = await self._call(lambda client: client.batches.get(name=name))
        state = job.state.name if job.state else "JOB_STATE_UNSPECIFIED"
        why = (
            whole_text(without_key(str(job.error.message or ""), self._key))
            if job.error
            else "no reason given"
        )
        replies = (job.dest.inlined_responses if job.dest else None) or []
        return _Found(state, why, {n: self._reply(one) for one in replies if (n := _number(one))})

    def _reply(self, one: Any) -> str | SendError:  # noqa: ANN401 - the client's class
        """The body of a reply, or the error in its place."""
        if one.error:
            detail = without_key(f"{one.error.code}: {str(one.error.message or '')[:300]}", self._key)
            return SendError(_TROUBLES.get(one.error.code or 0, "failed"), detail)
        if not one.response:
            return SendError("lost", "neither a reply nor an error")
        body = json.dumps(one.response.model_dump(mode="json", by_alias=True, exclude_none=True))
        return without_key(body, self._key)


def _number(one: Any) -> int | None:  # noqa: ANN401 - the client's class
    """The number of the request that a reply is to."""
    number = (one.metadata or {}).get("request", "")
    return int(number) if number.isdigit() else None
