"""What the tests of commands share: a small experiment, and many commands in one process."""

import json
import subprocess
import sys

SMALL = """
name = "small"
[data]
kind = "world"
entities_per_topic = 24
pool_size = 6
statement_share = 0.1
stated_share = 0.4
[splits]
train = 0.4
calibration = 0.2
validation = 0.1
test = 0.3
[models.tiny.weights]
kind = "pocket"
width = 64
layers = 2
heads = 2
key_value_heads = 1
feed_forward = 128
tokens_per_step = 512
epochs = 2
checkpoint_steps = 20
[judge]
kind = "exact"
[methods.dpo]
kind = "dpo"
optimisation = { learning_rate = 1e-3, epochs = 1 }
[methods.implicit]
kind = "implicit"
optimisation = { learning_rate = 1e-3, epochs = 1 }
"""
"""The whole pipeline on a real model in a few seconds of each stage."""

MANY = """
import contextlib, io, json, sys
from deployments.cli import main
done = []
for arguments in json.loads(sys.stdin.read()):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code
    done.append([code, out.getvalue(), err.getvalue()])
heavy = [name for name in ("torch", "prefect", "transformers", "datasets") if name in sys.modules]
print(json.dumps([done, heavy]))
"""


def run_many(folder, commands, *, environment=None, unsaid=None):
    """Run several commands in one new process: (exit code, output, error) of each, heavy packages loaded.

    Whatever they print, `unsaid` must not be in it.
    """
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=json.dumps([[str(word) for word in command] for command in commands]),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert unsaid is None or unsaid not in done.stdout + done.stderr
    return json.loads(done.stdout)
