"""Stage `drift`, and what surrounds it: which system a run stands for, and what becomes of its policy."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from uuid import uuid4

from prefect.artifacts import acreate_markdown_artifact
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from pydantic import TypeAdapter

from calibration.artifacts import Artifact, Store, file_sha256
from calibration.auditing import AuditFile
from calibration.confidence import READOUTS, Readout
from calibration.config import Experiment
from calibration.drift import Allowance, Drift
from calibration.errors import ConfigurationError
from calibration.report import drift as report
from calibration.results import StageRecord
from calibration.routing.goals import Goal
from calibration.routing.policy import (
    RouterPolicy,
    Staleness,
    read_policy,
    read_staleness,
    stale_path,
)
from calibration.routing.rules import Prices
from calibration.runs import RUN, SUMMARY, Run, runs_root
from calibration.shared import Shared
from calibration.stages.drift import (
    DRIFT,
    Deployed,
    choose_questions,
    examine_drift,
    load_drift,
)
from calibration.stages.evaluate import TrainedSystem
from calibration.stewardship import in_use
from tasks.cancellation import heeding_cancellation
from tasks.journal import current_journal, current_listener
from tasks.publish import run_info
from tasks.record import stored_baseline
from tasks.shared import locks_of
from tasks.stage import stage
from tasks.telling import tell

POLICY, TRAINED, DEPLOYED = "router_policy.json", "trained.json", "deployed.json"
_TRAINED = TypeAdapter(tuple[TrainedSystem, ...])


@dataclass(frozen=True)
class Stored:
    """What a run says of the system that its policy routes."""

    run: str
    experiment: Experiment
    deployed: Deployed
    policy: RouterPolicy


def remember_trained(trained: tuple[TrainedSystem, ...]) -> None:
    """Keep which systems came of a run, so that they can be asked again."""
    if (run := current_journal().run) is not None:
        (run.folder / TRAINED).write_bytes(_TRAINED.dump_json(trained, indent=1))


def stored(name: str, asking: str | None) -> Stored:
    """The system behind the policy that stands for a run now, as it was last measured.

    A re-measurement that made no policy stands for the run that it measured again, and a policy that
    another has replaced for that one.

    Args:
        name: The run, or `latest`.
        asking: The run that wants to know: what it replaced itself, it looks at again.

    Raises:
        ConfigurationError: There is no such run, or it has no policy.
    """
    book = _in_force(Run.find(runs_root(), name), asking)
    record, path = book.read(), book.folder / POLICY
    if not path.exists():
        raise ConfigurationError(
            f"run {record.run} must have a router policy to be measured again; it has none. "
            f"Continue it: slm-calibration resume {record.run}"
        )
    policy = read_policy(path)
    if record.flow == "remeasure":
        deployed = Deployed.model_validate_json((book.folder / DEPLOYED).read_text(encoding="utf-8"))
    else:
        deployed = _deployed(book, record.experiment, policy)
    return Stored(record.run, record.experiment, deployed, policy)


@asynccontextmanager
async def alone_with(base: str) -> AsyncIterator[None]:
    """Be the only one who measures again what a run stands for; whoever comes second waits."""
    store = Store.from_environment()
    locks = locks_of(store, Shared.from_environment())
    key, holder = f"remeasure {_first(Run.find(runs_root(), base))}", uuid4().hex
    with in_use(store, runs_root()):
        if not await locks.aacquire_lock(key, holder, acquire_timeout=0.0):
            get_run_logger().warning("%s is being measured again by another run; this one waits", base)
            with heeding_cancellation(), _waiting("wait for another run"):
                await locks.aacquire_lock(key, holder)
        try:
            yield
        finally:
            locks.release_lock(key, holder)


@contextmanager
def _waiting(name: str) -> Iterator[None]:
    """Show whoever looks that this goes on."""
    listener, started, state = current_listener(), time.monotonic(), "Stopped"
    if listener is None:
        yield
        return
    listener.started(name)
    try:
        yield
        state = "Completed"
    finally:
        listener.ended(StageRecord(name=name, state=state, seconds=time.monotonic() - started))


def _first(book: Run) -> str:
    """The run that a chain of re-measurements began with, as far back as there are runs."""
    record = book.read()
    while record.flow == "remeasure" and record.baseline and (runs_root() / record.baseline / RUN).exists():
        record = Run(runs_root() / record.baseline).read()
    return record.run


def _in_force(book: Run, asking: str | None) -> Run:
    while True:
        record, policy = book.read(), book.folder / POLICY
        if record.flow == "remeasure" and record.baseline and (record.run == asking or not policy.exists()):
            book = Run.find(runs_root(), record.baseline)
            continue
        stale = read_staleness(policy) if policy.exists() else None
        successor = stale.replaced_by if stale else None
        # A successor that was deleted, or that found other data when it was continued, has no policy.
        if successor in (None, asking) or not (runs_root() / successor / POLICY).exists():
            return book
        book = Run.find(runs_root(), successor)


def overtaken(base: str) -> str | None:
    """The run that has measured a base since this flow run was due; None when it is still to be done.

    Only a flow run that a schedule made can be overtaken: after an absence, all that were missed begin.
    """
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    if flow_run is None or not flow_run.auto_scheduled or flow_run.expected_start_time is None:
        return None
    for book in Run.all(runs_root()):
        record = book.read()
        is_same = record.flow == "remeasure" and base in (record.baseline, record.run)
        if is_same and record.state == "Completed" and record.started >= flow_run.expected_start_time:
            return record.run
    return None


def _deployed(book: Run, experiment: Experiment, policy: RouterPolicy) -> Deployed:
    """The system that a run recommends."""
    baseline = stored_baseline(book.folder.name)
    before = baseline.of(experiment.target_name)
    readout = next(name for name in get_args(Readout) if name == policy.readout)
    adapter = None
    if policy.system == "base":
        answered = next(a for a in before.answered if readout in READOUTS[a.elicitation])
    else:
        system = _trained(book, policy.system)
        adapter, answered = system.adapter, system.answered
    return Deployed(
        system=policy.system,
        model=experiment.target_name,
        readout=readout,
        questions=baseline.questions,
        weights=before.weights,
        adapter=adapter,
        answered=answered,
    )


def _trained(book: Run, name: str) -> TrainedSystem:
    path = book.folder / TRAINED
    known = _TRAINED.validate_json(path.read_bytes()) if path.exists() else ()
    for system in known:
        if system.name == name:
            return system
    raise ConfigurationError(
        f"run {book.folder.name} must say where the answers of {name} are; it is of an earlier version. "
        f"Continue it, which takes all from the store: slm-calibration resume {book.folder.name}"
    )


async def questions_again(questions: Artifact, asked: Artifact) -> Artifact:
    """Those to ask again. No stage: it is done in moments, and makes the same artifact every time."""
    return await asyncio.to_thread(choose_questions, questions, asked, Store.from_environment())


@stage("calibration.stages.drift", libraries=("numpy", "scipy"), name="drift")
async def examine(
    before: Deployed,
    after: Deployed,
    policy: RouterPolicy,
    base: str,
    allowed: Allowance,
    prices: Prices,
    router: Goal,
    seed: int,
    judge: str,
    judge_audit: AuditFile | None,
) -> Artifact:
    """What changed, and what to do."""
    return await asyncio.to_thread(
        examine_drift,
        before,
        after,
        policy,
        base,
        allowed,
        prices,
        router,
        seed,
        Store.from_environment(),
        judge_audit.read(judge) if judge_audit else None,
    )


async def publish_drift(before: Stored, after: Deployed, found: Artifact) -> None:
    """Write what was found into the run's folder, and beside the policy that it is about."""
    journal = current_journal()
    if journal.run is None:
        raise RuntimeError("publish_drift must be called while a run is recorded")
    folder, drift = journal.run.folder, load_drift(found, Store.from_environment())
    info = run_info(journal, journal.run)
    text = report.markdown(drift, info)
    (folder / DEPLOYED).write_text(after.model_dump_json(indent=1), encoding="utf-8")
    (folder / DRIFT).write_text(drift.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / SUMMARY).write_text(report.summary(drift, info.run), encoding="utf-8")
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(report.html(drift, info), encoding="utf-8")
    (folder / POLICY).unlink(missing_ok=True)  # of an attempt that found other data
    if drift.policy is not None:
        drift.policy.write(folder / POLICY)
    mark(Run.find(runs_root(), before.run).folder / POLICY, drift, info.run)
    words = f"Report of run {info.run}"
    await tell(lambda: acreate_markdown_artifact(text, key="drift-report", description=words))


def mark(policy: Path, drift: Drift, run: str) -> None:
    """Say beside a policy that it is stale; or no longer, where it was found to hold after all."""
    earlier = read_staleness(policy)
    if drift.decision in ("refit", "retrain"):
        Staleness(
            policy=file_sha256(policy),
            since=earlier.since if earlier else datetime.now(UTC),
            reason=drift.reason,
            found_by=run,
            replaced_by=run if drift.policy else None,
        ).write(policy)
    elif drift.decision == "unchanged" and earlier is not None:
        stale_path(policy).unlink()
    elif earlier is not None and earlier.replaced_by == run:  # it found other data when it was continued
        earlier.model_copy(update={"replaced_by": None}).write(policy)
