from typing import Literal

import pytest

from calibration.artifacts import Artifact
from calibration.engines.hf import Hf
from calibration.jobs.infer import Infer
from calibration.jobs.work import plugin_modules, work_key
from calibration.schema import Schema

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


def test_code_and_libraries_are_part_of_the_key():
    assert work_key({}, ["calibration.confidence"], []) != work_key({}, ["calibration.prompts"], [])
    assert work_key({}, [], ["numpy"]) != work_key({}, [], [])


def test_what_has_no_identity_is_refused_rather_than_ignored():
    with pytest.raises(TypeError, match="got set"):
        key(a={1, 2})


def test_the_code_of_every_plugin_among_the_inputs_counts():
    job = Infer(questions=QUESTIONS, engine=Hf(), elicitation="plain")
    assert {"calibration.jobs.infer", "calibration.engines.hf", "calibration.artifacts"} <= plugin_modules(
        {"x": [job]}
    )
