"""What each stage came to, in the Prefect UI: whether it ran or was found in the cache.

The key of an artifact names the stage and the system, so that its page in the UI is a timeline over runs.
Artifacts are made from the flow itself: a task for each would cost more than they do.
"""

import asyncio
import json
import re

import pyarrow.parquet as pq
from prefect.artifacts import acreate_markdown_artifact

from calibration.artifacts import ROWS, Artifact, Store
from calibration.jobs.train import FIGURES
from calibration.report.stages import answers_page, data_page, training_page
from calibration.stages.baseline import Answered
from calibration.stages.data import LEFT_OUT
from calibration.stages.summary import load_summary, summarise_answers
from tasks.journal import current_journal
from tasks.stage import stage
from tasks.telling import tell


@stage("calibration.stages.summary", libraries=("numpy", "scipy", "matplotlib"), name="summarise {label}")
async def summarise(questions: Artifact, answered: Answered, label: str) -> Artifact:
    """One system's figures and reliability diagram, without the test split."""
    store = Store.from_environment()
    return await asyncio.to_thread(summarise_answers, questions, answered, label, store)


async def show_answers(questions: Artifact, answered: Answered, label: str) -> None:
    """Show how one system answers."""
    summary, picture = load_summary(await summarise(questions, answered, label), Store.from_environment())
    await _show(f"answers {label}", answers_page(label, summary, picture))


async def show_data(data: Artifact, method: str) -> None:
    """Show what a method learns from."""
    folder = Store.from_environment().folder(data)
    left_out = json.loads((folder / LEFT_OUT).read_text(encoding="utf-8"))
    await _show(f"data {method}", data_page(method, pq.read_metadata(folder / ROWS).num_rows, left_out))


async def show_training(adapter: Artifact, method: str) -> None:
    """Show how a training ended."""
    figures = (Store.from_environment().folder(adapter) / FIGURES).read_text(encoding="utf-8")
    await _show(f"training {method}", training_page(method, json.loads(figures)))


async def show_report(run: str, place: str, markdown: str) -> None:
    """Show the report."""
    text = f"The whole report is the file `{place}` on the machine that ran it.\n\n{markdown}"
    await _show("calibration report", text, f"Report of run {run}")


async def _show(name: str, markdown: str, description: str = "") -> None:
    text = f"{markdown}\n\nCost of this run so far: {current_journal().spending()}."
    key, words = re.sub(r"[^a-z0-9]+", "-", name), description or name.capitalize()
    await tell(lambda: acreate_markdown_artifact(text, key=key, description=words))
