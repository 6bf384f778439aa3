"""What a run would do, where, for how long and for how much, reckoned from assumptions that can be changed.

The time of one inference job is that of starting it plus that of its questions. A question costs its share
of the decoding steps, in which the weights are read once for all sequences that are decoded together, and
the arithmetic of its prompt.
"""

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.resources import files
from typing import Any

from pydantic import Field, ValidationError

from calibration.backends import BackendConfig
from calibration.backends.modal import CPU, PRICED, Modal
from calibration.config import Experiment, Model, apply_change, explain
from calibration.engines.hf import Hf
from calibration.errors import ConfigurationError
from calibration.judges import JudgeConfig
from calibration.judges.language import LanguageJudge
from calibration.judges.prompts import SIMPLEQA_JUDGE
from calibration.judges.provider import Usage
from calibration.methods import Dpo, Implicit, MethodConfig
from calibration.models.hub import Hub
from calibration.prompts import PROMPTS
from calibration.records import Elicitation, Question
from calibration.schema import Schema

HERE = "here"
BYTES = 2
"""Of a parameter in bfloat16."""


class GpuFacts(Schema):
    """What a GPU can do at best."""

    gb_per_second: float = Field(gt=0)
    tflops: float = Field(gt=0)


class Assumptions(Schema):
    """What is taken for granted; see `deployments/assumptions.toml`."""

    as_of: date
    measured: bool
    parameters: dict[str, float]
    """Billions, by the name of the model."""
    gpus: dict[str, GpuFacts]
    start_seconds: float = Field(default=90, ge=0)
    """From asking for a container to the first prompt, without reading the weights."""
    load_gb_per_second: float = Field(default=0.5, gt=0)
    """Weights from the volume to the GPU."""
    fetch_gb_per_second: float = Field(default=0.1, gt=0)
    """Weights from the hub to the volume."""
    characters_per_token: float = Field(default=4, gt=0)
    template_tokens: int = Field(default=12, ge=0)
    """What the chat template adds to a prompt."""
    plain_tokens: float = Field(default=12, gt=0)
    """Length of a reply that is the answer alone."""
    stated_tokens: float = Field(default=24, gt=0)
    """Length of a reply with a number."""
    number_steps: float = Field(default=13, ge=0)
    """Single steps behind a reply with a number, for the distribution that it was taken from."""
    sequences: int = Field(default=256, ge=1)
    """What vLLM decodes together."""
    step_seconds: float = Field(default=0.025, ge=0)
    """Of a decoding step, beside reading the weights: the time of the processor that directs the GPU."""
    compute_share: float = Field(default=0.4, gt=0, le=1)
    """Of the GPU's arithmetic, while prompts are read and in training."""
    training_step_seconds: float = Field(default=0.5, ge=0)
    """Of a step of training, beside the arithmetic."""
    judge_reply_tokens: float = Field(default=30, gt=0)
    judge_seconds: float = Field(default=1.5, ge=0)
    """From a request to its reply."""

    def reply_tokens(self, way: Elicitation) -> float:
        """Length of a reply."""
        return self.plain_tokens if way == "plain" else self.stated_tokens

    def billions(self, repo: str) -> float | None:
        """The size of a model; None when neither the table nor its name tells."""
        named = re.search(r"(\d+(?:\.\d+)?)b\b", repo.casefold())
        return self.parameters.get(repo) or (float(named[1]) if named else None)


@dataclass(frozen=True)
class Speed:
    """Seconds of one job: to start it, and for each of its questions."""

    start: float
    question: float

    def machine(self, questions: int, size: int) -> float:
        """Seconds of all jobs together: what is paid for."""
        return math.ceil(questions / size) * self.start + questions * self.question

    def wall(self, questions: int, size: int, at_once: int) -> float:
        """Seconds from the first job's beginning to the last one's end, so many at a time."""
        whole, rest = divmod(questions, size)
        lanes = [0.0] * at_once
        for count in [size] * whole + [rest] * (rest > 0):
            lanes[lanes.index(min(lanes))] += self.start + count * self.question
        return max(lanes)


@dataclass(frozen=True)
class Line:
    """One stage of a plan; None is what cannot be said."""

    stage: str
    jobs: int = 1
    where: str = HERE
    machine_minutes: float | None = None
    """Of all jobs together."""
    minutes: float | None = None
    """From begin to end."""
    usd: float | None = None
    aside: float = 0.0
    """USD set aside for the calls under way together, as if they ran to their time limits."""


@dataclass(frozen=True)
class Plan:
    """All stages, and what they come to."""

    lines: tuple[Line, ...]
    minutes: float
    """From begin to end, if every job that can go on has a machine."""
    aside: float
    """Most USD that are set aside at one time."""

    @property
    def usd(self) -> float:
        """Of all stages on which something can be said."""
        return math.fsum(line.usd or 0 for line in self.lines)

    @property
    def unknown(self) -> list[str]:
        """Stages elsewhere on whose time or price nothing can be said."""
        return [line.stage for line in self.lines if line.where != HERE and line.usd is None]


def load_assumptions(changes: Sequence[str] = ()) -> Assumptions:
    """The shipped assumptions with some of them changed, such as "start_seconds=45"."""
    place = files("deployments") / "assumptions.toml"
    settings: dict[str, Any] = tomllib.loads(place.read_text(encoding="utf-8"))
    for change in changes:
        apply_change(settings, change)
    try:
        return Assumptions.model_validate(settings)
    except ValidationError as error:
        raise ConfigurationError(
            f"--assume: {explain(error, settings, Assumptions, see='deployments/assumptions.toml')}"
        ) from error


def plan(
    experiment: Experiment, questions: Sequence[Question], on: BackendConfig, given: Assumptions
) -> Plan:
    """Reckon a whole run."""
    planner = Planner(experiment, questions, on, given)
    measuring = [
        branch for name, model in experiment.models.items() for branch in planner.measure(name, model)
    ]
    teaching = [planner.teach(name, method) for name, method in experiment.methods.items()]
    stages = [line for branch in (*measuring, *teaching) for line in branch]
    return Plan(
        # A model's weights stand in a branch for each way of asking it.
        lines=(Line("prepare"), *dict.fromkeys(stages), Line("evaluate"), Line("draw"), Line("publish")),
        minutes=_longest(measuring) + _longest(teaching),
        aside=max(_aside(measuring, "infer"), _aside(teaching, "train"), _aside(teaching, "infer")),
    )


@dataclass(frozen=True)
class Planner:
    """Reckons single stages."""

    experiment: Experiment
    questions: Sequence[Question]
    on: BackendConfig
    given: Assumptions

    def measure(self, name: str, model: Model) -> list[list[Line]]:
        """A model's weights, answers and verdicts, for each way of asking."""
        weights = [] if model.weights is None else [self._obtain(name, model)]
        return [[*weights, *self._answer(name, model, way)] for way in model.asked]

    def teach(self, name: str, method: MethodConfig) -> list[Line]:
        """A method's data and training, and the answers of what came of it."""
        target = self.experiment.models[self.experiment.target_name]
        answers = self._answer(name, target, method.elicitation)
        return [Line(f"data {name}"), self._train(name, method, target), *answers]

    def _obtain(self, name: str, model: Model) -> Line:
        line = Line(f"obtain {name}", where=self._where(CPU))
        size = self._gigabytes(model)
        if size is None:
            return line
        seconds = self.given.start_seconds + size / self.given.fetch_gb_per_second
        return self._timed(line, seconds, seconds)

    def _answer(self, name: str, model: Model, way: Elicitation) -> list[Line]:
        shards, count = self.experiment.shards, len(self.questions)
        judge = self._judge(f"judge {name} {way}", self.experiment.judge)
        summarise = Line(f"summarise {name} {way}")
        if model.weights is None:
            return [Line(f"infer {name} {way}"), judge, summarise]
        jobs = math.ceil(count / shards.size)
        line = Line(f"infer {name} {way}", jobs, self._where("infer_gpu"))
        if isinstance(self.on, Modal):
            limit = self.on.infer_minutes / 60 * self.on.price(line.where)
            line = replace(line, aside=min(jobs, shards.at_once) * limit)
        if speed := self.speed(model, way):
            wall = speed.wall(count, shards.size, shards.at_once)
            line = self._timed(line, speed.machine(count, shards.size), wall)
        return [line, judge, summarise]

    def speed(self, model: Model, way: Elicitation) -> Speed | None:
        """How fast a model answers on the backend's GPU; None where that cannot be said."""
        size, gpu = self._gigabytes(model), self.given.gpus.get(self._where("infer_gpu"))
        if size is None or gpu is None:
            return None
        given, engine = self.given, model.engine
        step = given.step_seconds + size / gpu.gb_per_second
        together = engine.batch_size if isinstance(engine, Hf) else given.sequences
        # A batch of `hf` lasts as long as its longest reply; vLLM fills the place of a reply that has ended.
        steps = engine.max_tokens if isinstance(engine, Hf) else given.reply_tokens(way)
        steps += given.number_steps if way == "stated" else 0
        reading = self._arithmetic(2 * self._prompt_tokens(way), size, gpu)
        return Speed(
            start=given.start_seconds + size / given.load_gb_per_second,
            question=steps * step / together + reading,
        )

    def _train(self, name: str, method: MethodConfig, target: Model) -> Line:
        line = Line(f"train {name}", where=self._where("train_gpu"))
        if isinstance(self.on, Modal):
            line = replace(line, aside=self.on.train_minutes / 60 * self.on.price(line.where))
        size, gpu = self._gigabytes(target), self.given.gpus.get(line.where)
        if size is None or gpu is None:
            return line
        rows = sum(question.split == "train" for question in self.questions)
        tokens = self._prompt_tokens(method.elicitation) + self.given.reply_tokens(method.elicitation)
        runs = method.optimisation
        steps = runs.epochs * math.ceil(rows / (runs.batch_size * runs.accumulation))
        seconds = (
            self.given.start_seconds
            + size / self.given.load_gb_per_second
            + runs.epochs * rows * self._arithmetic(_work(method) * tokens, size, gpu)
            + steps * self.given.training_step_seconds
        )
        return self._timed(line, seconds, seconds)

    def _judge(self, stage: str, judge: JudgeConfig) -> Line:
        if not isinstance(judge, LanguageJudge):
            return Line(stage)
        count, given = len(self.questions), self.given
        reply = " " * round(given.plain_tokens * given.characters_per_token)
        cases = ({"question": q.text, "accepted_answers": q.answers, "answer": reply} for q in self.questions)
        characters = sum(len(SIMPLEQA_JUDGE.render(case)) for case in cases)
        used = Usage(
            prompt=round(characters / given.characters_per_token),
            output=round(count * given.judge_reply_tokens),
        )
        minutes = count * given.judge_seconds / judge.concurrency / 60
        usd = judge.known.usd(used) if judge.known else None
        return Line(stage, count, judge.model, minutes=minutes, usd=usd)

    def _timed(self, line: Line, machine: float, wall: float) -> Line:
        """A line with its seconds, and what they cost."""
        if not isinstance(self.on, Modal):
            return line
        usd = machine / 3600 * self.on.price(line.where)
        return replace(line, machine_minutes=machine / 60, minutes=wall / 60, usd=usd)

    def _where(self, setting: str) -> str:
        """The machine for a kind of work."""
        return getattr(self.on, setting, CPU) if isinstance(self.on, Modal) else HERE

    def _gigabytes(self, model: Model) -> float | None:
        billions = self.given.billions(model.weights.repo) if isinstance(model.weights, Hub) else None
        return None if billions is None else BYTES * billions

    def _prompt_tokens(self, way: Elicitation) -> float:
        characters = sum(len(PROMPTS[way].render(question.text)) for question in self.questions)
        mean = characters / len(self.questions)
        return self.given.template_tokens + mean / self.given.characters_per_token

    def _arithmetic(self, passes: float, size: float, gpu: GpuFacts) -> float:
        """Seconds for so many multiplications or additions with each parameter."""
        return passes * size / BYTES * 1e9 / (gpu.tflops * 1e12 * self.given.compute_share)


def _work(method: MethodConfig) -> float:
    """Operations for each parameter and token of a row: 2 forward and 4 back, 2 in the base model."""
    if isinstance(method, Dpo):
        return 2 * (6 + 2)
    return 6 + (2 if isinstance(method, Implicit) and method.reference_kl else 0)


def _longest(branches: Iterable[Sequence[Line]]) -> float:
    """Minutes of the longest of branches that go on side by side."""
    return max((math.fsum(line.minutes or 0 for line in branch) for branch in branches), default=0.0)


def _aside(branches: Iterable[Sequence[Line]], stage: str) -> float:
    """What is set aside while every branch is at this stage."""
    return math.fsum(line.aside for branch in branches for line in branch if line.stage.startswith(stage))


def shown(plan: Plan, on: BackendConfig, given: Assumptions) -> Iterator[str]:
    """A plan in lines for a person."""
    yield f"{'stage':40} {'jobs':>7}  {'where':22} {'machine min':>11} {'min':>7} {'USD':>8}"
    for line in plan.lines:
        minutes = (_number(line.machine_minutes, 1), _number(line.minutes, 1))
        row = f"{line.stage:40} {line.jobs:7}  {line.where:22} {minutes[0]:>11} {minutes[1]:>7}"
        yield f"{row} {_number(line.usd, 2):>8}".rstrip()
    if not isinstance(on, Modal):
        yield "Time on this machine is not estimated; --backend modal reckons with GPUs."
        return
    yield f"about {plan.minutes:.0f} minutes from begin to end, about {plan.usd:.2f} USD"
    if plan.unknown:
        yield f"without {', '.join(plan.unknown)}, on which nothing can be said"
    yield (
        f"GPUs at list prices of {PRICED}, without memory, processors and storage. "
        f"Up to {plan.aside:.2f} USD are set aside at one time; max_usd is {on.max_usd:.2f}."
    )
    origin = "measured" if given.measured else "assumed, not measured"
    yield f"Sizes and speeds are {origin} ({given.as_of}); change them with --assume NAME=VALUE:"
    yield "  " + " ".join(
        f"{name}={value:g}" for name, value in given if isinstance(value, float | int) and name != "measured"
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
