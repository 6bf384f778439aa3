"""What a container does, without one: `commit` is seen from outside by what it has made durable."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from calibration.artifacts import Artifact, Store
from calibration.backends import container
from calibration.backends.container import HOLDER, SIGN, Sign, attempt
from calibration.backends.exam import Exam
from calibration.engines.hf import Hf
from calibration.engines.vllm import Vllm
from calibration.errors import JobError
from calibration.jobs.obtain import Obtain
from calibration.models.hub import Hub
from calibration.models.pocket import Pocket
from calibration.records import Question
from calibration.worlds.facts import Document

DOCTOR = """
import json, sys
from calibration.backends.container import examine
print(json.dumps(examine(json.load(sys.stdin))))
"""


class Volume:
    """A folder inside, and what of it was committed."""

    def __init__(self, folder):
        self.inside, self.outside = folder / "inside", folder / "outside"
        self.commits = 0
        self.refuses = False

    @property
    def store(self):
        return Store(self.inside)

    def commit(self):
        if self.refuses:
            raise RuntimeError("there are open files preventing the operation")
        self.commits += 1
        shutil.rmtree(self.outside, ignore_errors=True)
        shutil.copytree(self.inside, self.outside)

    def lose_container(self):
        """What was not committed is gone."""
        shutil.rmtree(self.inside)
        shutil.copytree(self.outside, self.inside)

    def sign(self):
        return Sign.model_validate_json((self.outside / "scratch" / "key" / SIGN).read_text())


@pytest.fixture
def volume(tmp_path):
    return Volume(tmp_path)


def training(volume) -> dict[str, Any]:
    documents = [Document(user=None, reply=f"{n} is a number of some length") for n in range(20)]
    tiny = {"width": 16, "layers": 1, "heads": 2, "key_value_heads": 1, "feed_forward": 16}
    weights = Pocket(**tiny, tokens_per_step=64, checkpoint_steps=1)
    corpus = volume.store.save_rows("corpus", documents, Document)
    return Obtain(weights=weights, corpus=corpus).model_dump(mode="json")


def pull_the_plug_at(monkeypatch, note, blow):
    """Let the training be interrupted when its progress says so."""
    whole = container._Life.progress

    def progress(self, fraction, words):
        whole(self, fraction, words)
        if fraction >= note:
            raise blow

    monkeypatch.setattr(container._Life, "progress", progress)


def test_the_result_is_committed_before_it_is_told(volume):
    answer = attempt(training(volume), "key", volume.store, volume.commit, call="fc-1")
    artifact = Artifact.model_validate(answer["artifact"])
    assert Store(volume.outside).is_whole(artifact)
    assert answer["seconds"] == volume.sign().seconds > 0


def test_finished_work_is_not_done_again(volume):
    job = training(volume)
    first = attempt(job, "key", volume.store, volume.commit, call="fc-1")
    volume.lose_container()
    corpus = volume.inside / "artifacts" / "corpus"
    shutil.rmtree(corpus)
    assert attempt(job, "key", volume.store, volume.commit, call="fc-1")["artifact"] == first["artifact"]


@pytest.mark.parametrize("blow", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_attempt_commits_its_checkpoints_and_the_next_goes_on_from_them(
    volume, monkeypatch, blow
):
    job = training(volume)
    whole = attempt(job, "undisturbed", volume.store, volume.commit, call="fc-1")
    with monkeypatch.context() as patch:
        pull_the_plug_at(patch, 0.5, blow)
        with pytest.raises(type(blow)):
            attempt(job, "key", volume.store, volume.commit, call="fc-1")
    volume.lose_container()
    before = volume.sign()
    assert 0.5 <= before.fraction < 1
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(container._Life, "progress", lambda self, fraction, note: seen.append(fraction))
        after = attempt(job, "key", volume.store, volume.commit, call="fc-1")
    assert after["artifact"] == whole["artifact"]
    assert after["seconds"] > before.seconds
    assert min(seen) > before.fraction - 1e-9, "steps whose checkpoint was kept are not done again"


def test_work_that_another_call_does_is_left_to_it_until_that_call_is_known_to_be_over(volume, monkeypatch):
    job = training(volume)
    with monkeypatch.context() as patch:
        pull_the_plug_at(patch, 0.0, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            attempt(job, "key", volume.store, volume.commit, call="fc-1")
    volume.lose_container()
    assert (volume.outside / "scratch" / "key" / HOLDER).read_text() == "fc-1"
    second = attempt(job, "key", volume.store, volume.commit, call="fc-2")
    assert second == {"elsewhere": "fc-1", "seconds": 0.0}
    assert "artifact" in attempt(job, "key", volume.store, volume.commit, call="fc-2", over=["fc-1"])
    assert not (volume.outside / "scratch" / "key" / HOLDER).exists()


def test_what_is_under_way_is_committed_from_time_to_time(volume, monkeypatch):
    monkeypatch.setattr(container, "COMMIT_SECONDS", 0.0)
    signs = []
    whole = container._Life.progress

    def progress(self, fraction, note):
        whole(self, fraction, note)
        signs.append((volume.sign().fraction, fraction))

    monkeypatch.setattr(container._Life, "progress", progress)
    attempt(training(volume), "key", volume.store, volume.commit, call="fc-1")
    assert len(signs) > 2
    assert all(outside == inside for outside, inside in signs)


def test_a_commit_that_is_refused_now_and_then_does_no_harm_but_the_last_one_must_hold(volume, monkeypatch):
    monkeypatch.setattr(container, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(container, "COMMIT_PAUSES", (0.0, 0.0))
    job = training(volume)
    volume.refuses = True
    with pytest.raises(RuntimeError, match="open files"):
        attempt(job, "key", volume.store, volume.commit, call="fc-1")
    assert volume.commits == 0
    volume.refuses = False
    assert "artifact" in attempt(job, "key", volume.store, volume.commit, call="fc-1")


def test_finished_work_outlives_a_last_commit_that_is_refused_at_first(volume, monkeypatch):
    monkeypatch.setattr(container, "COMMIT_PAUSES", (0.0, 0.0))
    refusals = iter([True, True, False])

    def commit():
        volume.refuses = next(refusals)
        volume.commit()

    answer = attempt(training(volume), "key", volume.store, commit, call="fc-1")
    assert Store(volume.outside).is_whole(Artifact.model_validate(answer["artifact"]))


def test_a_refusal_is_a_value_and_anything_else_an_exception_in_words(volume):
    job = {**training(volume), "corpus": None}
    answer = attempt(job, "key", volume.store, volume.commit, call="fc-1")
    assert answer["error"] == "DataError"
    assert "documents" in answer["message"]
    with pytest.raises(JobError, match=r"^ValidationError: \d+ validation errors? for .*kind") as caught:
        attempt({"kind": "nothing"}, "other", volume.store, volume.commit, call="fc-1")
    assert "\n" not in str(caught.value)


@pytest.fixture
def doctor(hub, tmp_path):
    """What the doctor says of models by name, in a process that knows this hub only."""
    hub.asked.clear()

    def examined(**exams):
        for name, (files, _, _) in exams.items():
            if files is not None:
                hub.models[f"acme/{name}"] = {path.name: path.read_bytes() for path in files}
        asked = [
            Exam(
                weights=Hub(repo=f"acme/{name}"),
                engine=engine,
                elicitations=("plain", "stated"),
                questions=(Question(id="q", text=text, answers=("x",)),),
            ).model_dump(mode="json")
            for name, (_, engine, text) in exams.items()
        ]
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(
            [sys.executable, "-c", DOCTOR],
            input=json.dumps(asked),
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        said = json.loads(done.stdout)
        assert said["libraries"]["torch"].startswith("2.")
        return said["models"]

    yield examined
    hub.models.clear()
    hub.gated.clear()


def test_a_doctor_passes_models_that_can_be_had_and_asked_without_fetching_their_weights(
    doctor, hub, random_model
):
    files = list(random_model.iterdir())
    said = doctor(good=(files, Hf(), "why?"), fast=(files, Vllm(), "why?"))
    assert said == {"acme/good": "", "acme/fast": ""}
    assert not [path for path in hub.asked if path.endswith("safetensors")]


def test_a_doctor_says_in_one_line_why_a_model_cannot_be_had_or_asked(doctor, hub, random_model):
    files = list(random_model.iterdir())
    hub.gated.add("acme/gated")
    said = doctor(
        gated=(files, Hf(), "why?"),
        none=(None, Hf(), "why?"),
        base=([path for path in files if path.name != "chat_template.jinja"], Hf(), "why?"),
        long=(files, Vllm(), "why? " * 100),
        empty=([], Hf(), "why?"),
    )
    words = {
        "acme/gated": "is gated; accept its terms",
        "acme/none": "found no acme/none",
        "acme/base": "model acme/base must have a chat template",
        "acme/long": "must leave room for 40 tokens in a context of 512",
        "acme/empty": "must be one that transformers can read",
    }
    assert said.keys() == words.keys()
    for name in words:
        assert words[name] in said[name]
        assert "\n" not in said[name]
