"""What every language-model judge has in common, whichever service answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import ClassVar

from pydantic import Field, JsonValue

from calibration.artifacts import Store
from calibration.endpoints import Endpoint
from calibration.errors import ConfigurationError
from calibration.judges.asking import Limits, Round
from calibration.judges.cases import JudgeProtocol
from calibration.judges.ledger import Ledger, Spent, opened, read_spent
from calibration.judges.models import KNOWN, ModelFacts, family
from calibration.judges.money import Cost, Money, dollars
from calibration.judges.prompts import SIMPLEQA_JUDGE
from calibration.judges.protocol import Item
from calibration.judges.provider import Connection, Usage
from calibration.judges.replies import SCHEMA_SHA256
from calibration.records import Question, Verdict


class LanguageJudge(Limits, ABC):
    """A judge that asks a language model. A service adds `connect`, and what it must have to `check`."""

    provider: ClassVar[str]
    """Who serves the model; part of every key, so that equal names of two services stay apart."""

    receives: ClassVar[str] = "questions, accepted answers and answers"
    """What the service is sent."""

    kind: str
    model: str = Field(min_length=1)
    """The model that judges."""
    thinking: str | None = Field(default=None, pattern=r"^(minimal|low|medium|high|\d+)$")
    """How much it may think first: a level, or for older models a number of tokens; unset, the least that it
    takes."""
    max_output_tokens: int = Field(default=256, ge=16)
    """Room for the reply, thoughts included."""
    facts: dict[str, ModelFacts] = Field(default_factory=dict)
    """Prices and abilities of models, by name, where the built-in table is silent or out of date."""

    @property
    def known(self) -> ModelFacts | None:
        """What is known of the model: the experiment's word before that of the built-in table."""
        names = (self.model, family(self.model))
        return next((table[n] for table in (self.facts, KNOWN) for n in names if n in table), None)

    @property
    def protocol(self) -> JudgeProtocol:
        """All that decides a verdict."""
        least = self.known.thinking[0] if self.known and self.known.thinking else "default"
        return JudgeProtocol(
            template=SIMPLEQA_JUDGE.version,
            template_sha256=SIMPLEQA_JUDGE.sha256,
            schema_sha256=SCHEMA_SHA256,
            provider=self.provider,
            model=self.model,
            thinking=self.thinking or least,
            max_output_tokens=self.max_output_tokens,
        )

    @property
    def version(self) -> str:
        """Service, model and prompt."""
        return self.protocol.version

    def identity(self) -> JsonValue:
        """The protocol: how fast, how patiently and at what price it judges changes no verdict."""
        return {"kind": self.kind, **self.protocol.model_dump(mode="json")}

    def check(self, questions: Sequence[Question]) -> None:  # noqa: ARG002 - what every judge is given
        """Refuse a model that is gone, a setting that it does not take, and a limit that cannot be kept.

        Raises:
            ConfigurationError: In one sentence, before anything is sent.
        """
        known = self.known
        if known and known.retired_on and known.retired_on <= datetime.now(UTC).date():
            raise ConfigurationError(
                f"judge.model must be a model that is still served; {self.model} was shut down on "
                f"{known.retired_on}. Use {known.replacement or 'another one'}"
            )
        if self.thinking and known and known.thinking and not self._takes(self.thinking, known.thinking):
            raise ConfigurationError(
                f"judge.thinking of {self.model} must be one of {', '.join(known.thinking)}; "
                f"got {self.thinking!r}"
            )
        if self.max_usd is not None and (
            known is None or known.input_usd is None or known.output_usd is None
        ):
            raise ConfigurationError(
                f"judge.max_usd must have prices to go by; those of {self.model} are not known. Give them in "
                f'[judge.facts."{self.model}"], or leave max_usd out'
            )

    @property
    def purse(self) -> Mapping[str, float]:
        """Whose requests for the model in the ledger cost money, and which share of its price they cost."""
        return {self.protocol.provider: 1.0}

    def money(self, ledger: Ledger) -> Money:
        """What the model may still cost, after all that it has cost in every run and in every way."""
        spent = (
            share * dollars(self.known, ledger.spent(provider, self.model))
            for provider, share in self.purse.items()
        )
        return Money(self.priced, self.max_usd, sum(spent))

    def costs(self, asker: str | None = None) -> list[Cost]:
        """What asking the model has cost, in each way that it was asked, by the store's ledger.

        Args:
            asker: Count only requests on behalf of this one; see `asking_as`.
        """
        found = read_spent(Store.from_environment().root, asker)
        costs = [
            Cost(
                provider=provider,
                model=self.model,
                spent=found.get((provider, self.model), Spent(Usage())),
                facts=self.known.at(share) if self.known else None,
            )
            for provider, share in self.purse.items()
        ]
        return [cost for cost in costs if cost.spent.requests] or costs[:1]

    @property
    def priced(self) -> ModelFacts | None:
        """The facts with the prices of the requests that this judge sends."""
        return self.known

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it sends something."""
        return (self.endpoint,)

    @property
    @abstractmethod
    def endpoint(self) -> Endpoint:
        """Where questions, accepted answers and answers go, and with which key."""

    @abstractmethod
    def connect(self) -> Connection:
        """A connection to the service, which opens when something is sent."""

    async def judge(
        self, items: Sequence[Item], *, progress: Callable[[float, str], None], vote: int = 0
    ) -> list[Verdict]:
        """One verdict for each item, in their order; what is in the store's ledger is not asked again.

        Args:
            items: The answers.
            progress: Told the share that is done, and a note.
            vote: Which of several independent votes on the same answers; each is kept for itself.

        Raises:
            ConfigurationError: Something is known to be wrong before the first request.
            DataError: Two items have the same id and other texts.
            JudgeError: Judging had to stop; everything that was answered is kept.
        """
        self.check(())
        folder = Store.from_environment().root
        async with (
            opened(folder, lambda words: progress(0.0, words)) as ledger,
            self.connect() as provider,
        ):
            judging = Round(self.protocol, self, self.money(ledger), provider, ledger, progress, vote)
            return await judging.judge(items)

    @staticmethod
    def _takes(thinking: str, known: Sequence[str]) -> bool:
        return thinking in known or (thinking.isdigit() and known[0].isdigit())
