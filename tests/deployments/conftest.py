import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

COMMAND = Path(sys.executable).with_name("slm-calibration")


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs the installed command in a folder of its own, with no Prefect server but its own."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    started = []

    def run(*arguments, wait=True):
        command = [str(COMMAND), *map(str, arguments)]
        if wait:
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        # Into a file: the temporary server of a killed run would keep a pipe open for ever.
        said = tmp_path / f"said-{len(started)}"
        with said.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        started.append(process)
        return process, said

    yield run
    for process in started:
        # The temporary server of a killed run outlives it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def recorded_answers(count=300):
    """Recorded answers of a made-up model that is sure of itself and often wrong."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        chance = float(rng.uniform(0.3, 0.99))
        right = bool(rng.random() < chance / 2)
        rows.append(
            {
                "question": f"Which town is number {number}?",
                "answer": f"Town{number}",
                "response": f"Town{number}" if right else f"City{number}",
                "tokens": json.dumps([f"Town{number}" if right else f"City{number}", "<eos>"]),
                "logprobs": json.dumps([math.log(chance), -0.001]),
                "label": int(right),
                "topic": "Geography",
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture
def recorded(tmp_path):
    """Writes an experiment on recorded answers; returns its file. The argument changes the table first."""

    def write(change=lambda table: table, text=""):
        change(recorded_answers()).to_csv(tmp_path / "answers.csv", index=False)
        experiment = tmp_path / "recorded.toml"
        experiment.write_text(
            'name = "recorded"\n'
            '[data]\nkind = "table"\npath = "answers.csv"\ntopic = "topic"\n'
            "[splits]\ntrain = 0.0\ncalibration = 0.3\nvalidation = 0.0\ntest = 0.7\n"
            '[models.somebody.engine]\nkind = "recorded"\npath = "answers.csv"\nlogprobs = "logprobs"\n'
            '[judge]\nkind = "recorded"\npath = "answers.csv"\n' + text
        )
        return experiment

    return write
