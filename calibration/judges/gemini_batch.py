"""Gemini by its Batch API: half the price, for answers within a day instead of at once.

The same protocol, keys and rules as `gemini`, so either uses the verdicts of the other. What is different is
that a job can be asked for again. Its requests and a label of our own for it are written down before it is
sent, and its name before it is waited for. So whatever ends the process, the same job is collected later and
nothing is paid twice: by its name, or if the process ended before the name came, by its label.
"""

import asyncio
import json
import re
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, JsonValue

from calibration.artifacts import Store
from calibration.endpoints import Endpoint
from calibration.errors import JudgeError
from calibration.judges.asking import (
    AGAIN,
    FAILURE,
    LONGEST_BACKOFF,
    MORE_ROOM,
    Round,
    check_ids,
    ruling_on,
)
from calibration.judges.cases import Case, guard
from calibration.judges.gemini import API, BATCH, BATCH_SHARE, Gemini, GeminiWire
from calibration.judges.language import LanguageJudge
from calibration.judges.ledger import Job, Ledger, Outcome, Ruling, opened
from calibration.judges.models import ModelFacts
from calibration.judges.prompts import SIMPLEQA_JUDGE
from calibration.judges.protocol import Item
from calibration.judges.provider import (
    Connection,
    SendError,
    Trouble,
    Usage,
    whole_json,
    whole_text,
    without_key,
)
from calibration.records import Question, Verdict

T = TypeVar("T")

LARGEST = 15_000_000
"""Bytes of one job; the service takes 20 MB."""
MOST_OF_JOB = 200_000_000
"""The longest reply that is read: that of a finished job holds those to all its requests."""
FRAME = 2_000
"""Bytes of a request without its prompt, generously."""
_NAME, _DIGITS = re.compile(r"batches/[A-Za-z0-9._~-]+"), re.compile(r"[0-9]{1,18}")
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
    def endpoint(self) -> Endpoint:
        """That of `gemini`."""
        return self._live.endpoint

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
            named = await self._named(job)
            if named is not None and await self._is_filed(named):
                ended += 1
            elif named is not None:
                self._under_way.append(named)
        return ended > 0

    async def _named(self, job: Job) -> Job | None:
        """The job with its name; None of one that the service has never got, which is closed."""
        try:
            name = job.name or await self._patiently(partial(self._wire.find, job.label))
        except SendError as error:
            raise self._stop(f"{self._who} must accept requests; it refuses", _outcome_of(error)) from None
        if name is None:
            self._end_all(job, Outcome("failed", "the job did not reach the service"))
            return None
        self.ledger.name_job(job.label, name)
        return Job(job.label, name, job.requests)

    async def _is_filed(self, job: Job) -> bool:
        """Look at a job, and file what came of it if it has ended.

        Raises:
            JudgeError: The service does not tell, or the job came to nothing.
        """
        try:
            found = await self._patiently(partial(self._wire.get, job.name or ""))
        except SendError as error:
            if error.status not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
                raise self._stop(
                    f"{self._who} must accept requests; it refuses", _outcome_of(error)
                ) from None
            why = f"must know the job {job.name}; it is gone, or cannot be read"
            self._close_all(job, Outcome("lost", error.detail, error.status), why)
            return True
        if found.state not in _ENDED:
            return False
        self._file(job, found)
        return True

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
                sent_job = await self._send_job(requests)
                self._under_way += [sent_job] if sent_job else []
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

    async def _send_job(self, requests: list[_Request]) -> Job | None:
        """Write a job down, send it, and write down its name; None of one that is refused.

        Raises:
            JudgeError: It is refused, which has not happened to all its cases before.
        """
        label = f"slm-calibration-{uuid.uuid4().hex}"
        planned = [(request.key, request.at_most) for request in requests]
        numbers = self.ledger.begin_job(label, BATCH, self.protocol.model, planned)
        numbered = dict(zip(numbers, requests, strict=True))
        job = Job(label, None, {number: request.key for number, request in numbered.items()})
        sending = self._wire.sending(label, {n: (r.prompt, r.room) for n, r in numbered.items()})
        try:
            name = await self._patiently(sending)
        except SendError as error:
            self._close_all(job, _outcome_of(error), "must accept requests; it refuses")
            return None
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
            why = f"must finish its jobs; {job.name} is {found.state}: {found.why}"
            self._close_all(job, Outcome(trouble, f"{found.state}: {found.why}"), why)
            return
        stop = None
        for attempt, key in job.requests.items():
            outcome = self._outcome(found.replies.get(attempt))
            is_old = self._has_met(key, outcome)
            self._close(attempt, key, outcome)
            stop = outcome if outcome.name in ("fatal", "drifted") and not is_old else stop
        if stop and stop.name == "drifted":
            raise self._stop(f"{self._who} must answer itself; another model answered in its place", stop)
        if stop:
            raise self._stop(f"{self._who} must accept requests; it refuses them", stop)

    def _close(self, attempt: int, key: str, outcome: Outcome) -> None:
        """Write down how one request ended; rule on its case, or leave it to be asked again."""
        kind = FAILURE if outcome.name in ("failed", "lost") else outcome.name
        tries = self._tries.setdefault(key, Counter())
        tries[kind] += 1
        ruling = ruling_on(outcome, kind, tries[kind])
        # Whoever asked the same in the meantime has got a verdict that others may have used.
        new = ruling if outcome.is_answer and not self._kept(key) else None
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

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call the service, and again after a pause for as long as there is patience.

        Raises:
            SendError: It refuses, or its answer cannot be read however often it is asked for.
            JudgeError: The patience is at its end.
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
            tries += 1
            is_odd = error.status == HTTPStatus.OK and tries > AGAIN[FAILURE]
            if error.trouble in ("fatal", "rejected") or is_odd:
                raise error
            pause = error.retry_after or min(self.limits.retry_seconds * 2 ** (tries - 1), LONGEST_BACKOFF)
            if time.monotonic() + pause - began > self.limits.patience_seconds:
                raise self._stop(f"{self._who} must answer; it does not ({error.detail})")
            await asyncio.sleep(pause)

    def _close_all(self, job: Job, outcome: Outcome, why: str) -> None:
        """Close a job that came to nothing, which leaves its cases to the next round.

        Where all of them have met such trouble in an earlier round they are unjudged instead, so that one of
        them cannot stop every round.

        Raises:
            JudgeError: Says why; not where they are unjudged.
        """
        are_old = all(self._has_met(key, outcome) for key in job.requests.values())
        self._end_all(job, outcome)
        if not are_old:
            raise self._stop(f"{self._who} {why}", outcome)
        for key in self._requests.keys() & set(job.requests.values()):
            self._rule_on(key, Ruling("unjudged", f"{outcome.name}: {outcome.detail}"))
            self.tally.asked += 1

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

    most_bytes = MOST_OF_JOB

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
            if name := _name(job.name):
                return name
            raise SendError("lost", "a job without a name")

        return send

    async def find(self, label: str) -> str | None:
        """The name of the job with this label; None when the service has none."""
        page: dict[str, str] = {}
        while True:
            told = await self._fetch("batches", {"pageSize": "100", **page})
            jobs = _at(told, "operations")
            for job in jobs if isinstance(jobs, list) else []:
                if _at(job, "metadata", "displayName") == label and (name := _name(_at(job, "name"))):
                    return name
            token = _at(told, "nextPageToken")
            if not isinstance(token, str) or not token:
                return None
            page = {"pageToken": token}

    async def get(self, name: str) -> _Found:
        """How a job is, and when it has succeeded, its replies.

        Raises:
            SendError: There is no answer, or one that says nothing of a job.
        """
        job = await self._fetch(name, {})
        state, why = _at(job, "metadata", "state"), _at(job, "error", "message")
        if not isinstance(state, str) or not state:
            raise SendError("lost", "a job without a state", HTTPStatus.OK)
        replies = _at(job, "metadata", "output", "inlinedResponses", "inlinedResponses")
        return _Found(
            state=state[:40].replace("BATCH_STATE_", "JOB_STATE_"),
            why=whole_text(without_key(why, self._key)) if isinstance(why, str) else "no reason given",
            replies={
                number: self._reply(one)
                for one in (replies if isinstance(replies, list) else [])
                if (number := _number(one)) is not None
            },
        )

    async def _fetch(self, path: str, query: Mapping[str, str]) -> object:
        """What the service tells of a job, or of all. Google's client would refuse all for an odd part of it.

        Raises:
            SendError: It tells nothing.
        """
        from google.genai import errors

        async def fetch(client: Any) -> str:  # noqa: ANN401 - the client's class
            del client
            response = await self._http.get(
                f"{self._url.rstrip('/')}/{API}/{path}", params=query, headers={"x-goog-api-key": self._key}
            )
            await errors.APIError.raise_for_async_response(response)
            return str(response.text)

        body = await self._call(fetch)
        try:
            return json.loads(await asyncio.to_thread(whole_json, body))
        except ValueError:
            raise SendError("lost", "an answer that is no JSON", HTTPStatus.OK) from None

    def _reply(self, one: object) -> str | SendError:
        """The body of a reply, or the error in its place."""
        if error := _at(one, "error"):
            code, message = _at(error, "code"), str(_at(error, "message") or "")[:300]
            trouble = _TROUBLES.get(code, "failed") if isinstance(code, int) else "failed"
            return SendError(trouble, without_key(f"{str(code)[:20]}: {message}", self._key))
        if not (response := _at(one, "response")):
            return SendError("lost", "neither a reply nor an error")
        return without_key(json.dumps(response), self._key)


def _outcome_of(error: SendError) -> Outcome:
    return Outcome(error.trouble, error.detail, error.status)


def _at(value: object, *names: str) -> object:
    """What stands under these names, one within the other; None where nothing does."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _name(name: object) -> str | None:
    """The name of a job, if it is one."""
    return name if isinstance(name, str) and _NAME.fullmatch(name) else None


def _number(one: object) -> int | None:
    """The number of the request that a reply is to."""
    number = _at(one, "metadata", "request")
    return int(number) if isinstance(number, str) and _DIGITS.fullmatch(number) else None
