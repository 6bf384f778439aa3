from pathlib import Path
from typing import Literal

import pytest

from calibration import fingerprint
from calibration.artifacts import Artifact
from calibration.engines import vllm
from calibration.engines.hf import Hf
from calibration.engines.recorded import RecordedAnswers
from calibration.engines.vllm import Vllm
from calibration.jobs.infer import Infer
from calibration.jobs.work import plugins_in, work_key
from calibration.schema import Schema
from calibration.sources.mixture import Mixture
from calibration.sources.table import Table

QUESTIONS = Artifact(kind="questions", sha256="0" * 64)


class Setting(Schema):
    kind: Literal["setting"] = "setting"
    size: float = 1.0


def key(**inputs):
    return work_key(inputs, ["calibration.confidence"], ["numpy"])


def test_equal_inputs_have_one_key_whatever_their_order():
    assert key(a=1, b=Setting()) == key(b=Setting(size=1.0), a=1)


@pytest.mark.parametrize(
    "other",
    [
        {"a": 2, "b": Setting()},
        {"a": 1, "b": Setting(size=2.0)},
        {"a": 1},
        {"a": 1, "b": Setting(), "c": None},
    ],
)
def test_any_difference_makes_another_key(other):
    assert key(a=1, b=Setting()) != key(**other)


def test_a_setting_inside_another_counts_by_what_it_says_it_is(tmp_path):
    file = tmp_path / "answers.csv"
    file.write_text("id,question,response,tokens,logprobs\nq,why?,x,['x'],[-0.1]\n")
    engine = RecordedAnswers(path=file, logprobs="logprobs")

    def job(engine):
        return work_key({"job": Infer(questions=QUESTIONS, engine=engine, elicitation="plain")})

    before, nested = job(engine), work_key({"a": {"b": [Mixture(sets={"one": Table(path=file)})]}})
    moved = file.rename(tmp_path / "moved.csv")
    assert job(engine.model_copy(update={"path": moved})) == before
    assert work_key({"a": {"b": [Mixture(sets={"one": Table(path=moved)})]}}) == nested
    moved.write_text(moved.read_text().replace("-0.1", "-0.2"))
    assert job(engine.model_copy(update={"path": moved})) != before


def test_code_and_libraries_are_part_of_the_key():
    assert work_key({}, ["calibration.confidence"], []) != work_key({}, ["calibration.prompts"], [])
    assert work_key({}, [], ["numpy"]) != work_key({}, [], [])


def test_what_has_no_identity_is_refused_rather_than_ignored():
    with pytest.raises(TypeError, match="got set"):
        key(a={1, 2})


def test_the_code_of_every_plugin_among_the_inputs_counts():
    job = Infer(questions=QUESTIONS, engine=Hf(), elicitation="plain")
    assert plugins_in({"x": [job]}) == {Infer, Hf, Artifact}


def test_the_libraries_of_every_plugin_among_the_inputs_count(monkeypatch):
    job = Infer(questions=QUESTIONS, engine=Hf(), elicitation="plain")
    before = work_key({"x": [job]})
    monkeypatch.setattr(Hf, "libraries", ("torch",))
    assert work_key({"x": [job]}) != before


def test_the_release_of_vllm_counts_where_it_is_not_installed(monkeypatch, tmp_path):
    job = Infer(questions=QUESTIONS, engine=Vllm(), elicitation="plain")
    before = work_key({"x": job})
    source = Path(vllm.__file__).read_text()
    changed = tmp_path / "vllm.py"
    changed.write_text(source.replace(f'RELEASE = "{vllm.RELEASE}"', 'RELEASE = "0.99.0"'))
    found = fingerprint._source
    monkeypatch.setattr(
        fingerprint, "_source", lambda name: changed if name == vllm.__name__ else found(name)
    )
    fingerprint.module_digest.cache_clear()
    try:
        assert work_key({"x": job}) != before
    finally:
        fingerprint.module_digest.cache_clear()
