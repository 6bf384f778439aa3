"""Step `publish`: the report into the run's folder, and the same into the Prefect UI."""

import re
import time
from collections.abc import Iterable

from prefect import task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE

from calibration.artifacts import MANIFEST, Artifact, Store
from calibration.fingerprint import package_digest
from calibration.report.page import RenderedReport, RunInfo, render
from calibration.results import StageRecord
from calibration.runs import SUMMARY, Run
from calibration.stages.baseline import Baseline
from calibration.stages.evaluate import load_evaluation
from tasks.journal import Journal, current_journal
from tasks.record import save_baseline, versions
from tasks.telling import tell


async def publish(baseline: Baseline, evaluation: Artifact, figures: Artifact) -> None:
    """Write the report of the run that is going on.

    It is no stage: it says how this run went, which no stored result can.
    """
    journal = current_journal()
    if journal.run is None:
        raise RuntimeError("publish must be called while a run is recorded")
    report = _rendered(journal, journal.run, evaluation, figures)
    for name, content in report.files().items():
        (journal.run.folder / name).write_bytes(content)
    (journal.run.folder / SUMMARY).write_text(report.summary, encoding="utf-8")
    save_baseline(journal.run, baseline)
    await show(journal.run.folder.name, report.standalone_markdown())


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="publish {run}")
async def show(run: str, markdown: str) -> None:
    """Put the report into the Prefect UI."""
    words = f"Report of run {run}"
    await tell(lambda: acreate_markdown_artifact(markdown, key="calibration-report", description=words))


def _rendered(journal: Journal, run: Run, evaluation: Artifact, figures: Artifact) -> RenderedReport:
    store, record = Store.from_environment(), run.read()
    judge = record.experiment.judge
    folder = store.folder(figures)
    info = RunInfo(
        run=record.run,
        experiment=record.experiment.name,
        seed=record.experiment.seed,
        backend=record.backend,
        started=record.started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - journal.began, 3),
        stages=tuple(shards_as_one(journal.stages)),
        versions=versions(),
        settings=record.experiment.model_dump_json(),
        code=package_digest(),
        judge_protocol={"version": judge.version, "protocol": judge.identity()},
    )
    pictures = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    return render(load_evaluation(evaluation, store), info, pictures)


def shards_as_one(stages: Iterable[StageRecord]) -> list[StageRecord]:
    """The same stages, with one line for all shards of a job: there can be thousands."""
    lines: dict[str, StageRecord] = {}
    for stage in stages:
        name = re.sub(r" \d+/(\d+)$", r", \1 shards", stage.name)
        before = lines.get(name)
        if before is None:
            lines[name] = stage.model_copy(update={"name": name})
        else:
            states = " and ".join(sorted({*before.state.split(" and "), stage.state}))
            seconds = round(before.seconds + stage.seconds, 3)
            note = "; ".join(filter(None, (before.note, stage.note)))
            lines[name] = StageRecord(name=name, state=states, seconds=seconds, note=note)
    return list(lines.values())
