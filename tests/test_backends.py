"""Real worker processes, and a real model with random weights."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from calibration.artifacts import Store
from calibration.backends.local import Local
from calibration.backends.worker import finish, finished
from calibration.engines.hf import Hf
from calibration.errors import ConfigurationError, JobError
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.jobs.work import Work, work_key
from calibration.models.hub import Hub
from calibration.models.pocket import Pocket
from calibration.records import Generation, Question
from calibration.worlds.facts import Document, World


@pytest.fixture
def store():
    return Store.from_environment()


def asking(store, model, text="why?"):
    questions = store.save_rows("questions", [Question(id="q", text=text, answers=("x",))], Question)
    with store.draft() as draft:
        Hub(repo=str(model)).obtain([], draft, draft, lambda *_: None)
        weights = store.keep("model", draft)
    return Infer(questions=questions, model=weights, engine=Hf(max_tokens=4), elicitation="plain")


def run(job, store, key="key", notes=None):
    return asyncio.run(
        Local().run(job, key, store, lambda share, note: notes is None or notes.append((share, note)))
    )


def test_a_job_gives_the_same_in_a_process_of_its_own(store, random_model):
    job, notes = asking(store, random_model), []
    there = run(job, store, notes=notes)
    here = job.run(Work(store, store.scratch("here"), lambda *_: None))
    assert there == here
    assert notes[-1] == (1.0, "1 of 1 answers")
    assert [row.question_id for row in store.load_rows(there, Generation)] == ["q"]


def test_a_job_that_refuses_its_input_says_so_in_its_own_words(store, random_model):
    with pytest.raises(ConfigurationError, match="its prompt has"):
        run(asking(store, random_model, "why? " * 200), store)


def test_a_job_that_breaks_names_its_log(store, tmp_path, random_model):
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(JobError, match=r"logs/key\.log"):
        run(asking(store, broken), store)
    assert "Traceback" in store.log("key").read_text()


def test_no_more_jobs_than_allowed_run_side_by_side(store, random_model):
    going, most = set(), 0

    async def ask(text):
        def progress(share, note):
            nonlocal most
            going.add(text)
            most = max(most, len(going))

        await Local(at_once=1).run(asking(store, random_model, text), text, store, progress)
        going.discard(text)

    async def both():
        await asyncio.gather(ask("which"), ask("who"))

    asyncio.run(both())
    assert most == 1


def test_finished_work_is_not_done_again(store, random_model):
    job = asking(store, random_model)
    artifact = run(job, store)
    finish(store, "other", artifact)
    notes = []
    assert run(job, store, "other", notes) == artifact
    assert notes == []


def test_forgotten_work_is_done_again(store, random_model):
    job, notes = asking(store, random_model), []
    artifact = run(job, store)
    for _ in range(2):  # the second time there is nothing to forget
        asyncio.run(Local().forget("key", store))
    assert run(job, store, notes=notes) == artifact
    assert notes != []


def test_of_forgotten_work_no_checkpoint_is_left(store):
    (store.scratch("key") / "checkpoint-1").mkdir()
    asyncio.run(Local().forget("key", store))
    assert list(store.scratch("key").iterdir()) == []


def test_finished_work_whose_result_is_gone_is_done_again(store, random_model):
    job = asking(store, random_model)
    artifact = run(job, store)
    (store.folder(artifact) / "rows.parquet").unlink()
    assert finished(store, "key") is None
    assert run(job, store) == artifact


def test_a_note_of_finished_work_that_cannot_be_read_counts_as_none(store):
    (store.scratch("key") / "done.json").write_text('{"kind": "mod')
    assert finished(store, "key") is None


def test_a_note_of_finished_work_takes_the_place_of_its_checkpoints(store):
    scratch = store.scratch("key")
    (scratch / "checkpoint-1").mkdir()
    (scratch / "pretrain.pt").write_text("half")
    artifact = store.save_rows("questions", [], Question)
    finish(store, "key", artifact)
    assert [path.name for path in scratch.iterdir()] == ["done.json"]
    assert finished(store, "key") == artifact


ENVIRONMENTS = [
    {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    {"OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"},
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_DYNAMIC": "true"},
]


def test_what_the_environment_says_of_threads_and_instructions_changes_no_number(store, monkeypatch):
    world = World(entities_per_topic=24, pool_size=6, statement_share=0.1, stated_share=0.4)
    corpus = store.save_rows("corpus", world.documents()[:40], Document)
    job = Obtain(weights=Pocket(layers=2), corpus=corpus)
    models = set()
    for number, variables in enumerate(ENVIRONMENTS):
        with monkeypatch.context() as there:
            for name, value in variables.items():
                there.setenv(name, value)
            models.add(run(job, store, f"key-{number}"))
    assert len(models) == 1


def test_the_number_of_threads_is_part_of_what_work_is_kept_under():
    job = Obtain(weights=Pocket())
    assert work_key({"job": job}) != work_key({"job": job.model_copy(update={"threads": 2})})
    assert Local.model_validate({"kind": "local", "threads": None, "at_once": 1}) == Local(at_once=1)
    with pytest.raises(ValidationError, match=r"threads is a setting of the experiment.*--set threads=2"):
        Local(threads=2)


def test_a_worker_ends_when_its_parent_is_killed(store, random_model, tmp_path):
    job = tmp_path / "job.json"
    job.write_text(
        asking(store, random_model).model_copy(update={"engine": Hf(max_tokens=400)}).model_dump_json()
    )
    parent = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'calibration.backends.worker', sys.argv[1], 'key'],"
        " stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "worker.stdin.write(open(sys.argv[2], 'rb').read() + b'\\n'); worker.stdin.flush()\n"
        "print(worker.pid, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent, str(store.root), str(job)], stdout=subprocess.PIPE
    ) as process:
        worker = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    _wait_until_gone(worker)


def _wait_until_gone(process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        try:
            # A killed process stays in the table until someone collects it.
            if Path(f"/proc/{process}/stat").read_text().split()[2] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail(f"worker {process} outlived its parent")


def test_a_model_is_obtained_once_for_its_content(store, random_model):
    assert run(Obtain(weights=Hub(repo=str(random_model))), store) == run(
        Obtain(weights=Hub(repo=str(random_model))), store, "again"
    )
    assert json.loads((store.scratch("again") / "done.json").read_text())["kind"] == "model"
