import importlib
import sys
from typing import get_args

import pytest

from calibration import fingerprint
from calibration.engines import EngineConfig
from calibration.judges import JudgeConfig
from calibration.judges.language import LanguageJudge
from calibration.methods import MethodConfig
from calibration.models import WeightsConfig


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small library of its own in the place of ours; the returned function writes a module of it."""
    root = tmp_path / "toylib"
    root.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fingerprint, "PACKAGE", "toylib")
    monkeypatch.setattr(fingerprint, "REGISTRIES", frozenset({"toylib.plugins"}))

    def write(name, text):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop("toylib", None)
        for cached in (fingerprint.module_digest, fingerprint._imports, fingerprint._source):
            cached.cache_clear()

    write("__init__.py", "")
    write(
        "stage.py",
        "from toylib.deep import f\nfrom toylib.plugins import Union\n\ndef run():\n    return f()\n",
    )
    write("deep.py", "def f():\n    from toylib import far\n    return far.VALUE\n")
    write("far.py", "VALUE = 1\n")
    write("aside.py", "VALUE = 1\n")
    write("plugins/__init__.py", "from toylib.plugins.one import One\n")
    write("plugins/one.py", "One = 1\n")
    yield write
    for cached in (fingerprint.module_digest, fingerprint._imports, fingerprint._source):
        cached.cache_clear()


def digest():
    return fingerprint.code_digest(["toylib.stage"])


def test_comments_docstrings_and_layout_change_nothing(package):
    before = digest()
    package(
        "deep.py",
        '"""Says more."""\n\n\ndef f():\n    """Doc."""\n    # why\n'
        "    from toylib import (\n        far,\n    )\n    return (far.VALUE)\n",
    )
    assert digest() == before


def test_a_changed_expression_far_down_changes_it(package):
    before = digest()
    package("far.py", "VALUE = 2\n")
    assert digest() != before


def test_code_that_is_not_used_changes_nothing(package):
    before = digest()
    package("aside.py", "VALUE = 2\n")
    assert digest() == before


def test_a_neighbour_in_a_registry_changes_nothing_but_a_plugin_that_is_named_does(package):
    before, named = digest(), fingerprint.code_digest(["toylib.stage", "toylib.plugins.one"])
    package("plugins/one.py", "One = 2\n")
    assert digest() == before
    assert fingerprint.code_digest(["toylib.stage", "toylib.plugins.one"]) != named


def test_imports_inside_functions_are_followed(package):
    assert fingerprint.closure(["toylib.stage"]) == {"toylib.stage", "toylib.deep", "toylib.far", "toylib"}


def test_a_module_that_does_not_exist_is_an_error(package):
    with pytest.raises(ModuleNotFoundError, match=r"toylib\.nothing"):
        fingerprint.code_digest(["toylib.nothing"])


def test_prompts_count_for_the_engine_that_puts_them():
    assert "calibration.prompts" in fingerprint.closure(["calibration.engines.hf"])


def test_one_method_does_not_depend_on_the_other():
    assert "calibration.methods.implicit" not in fingerprint.closure(
        ["calibration.jobs.train", "calibration.methods.dpo"]
    )
    assert "calibration.methods.dpo" not in fingerprint.closure(
        ["calibration.jobs.train", "calibration.methods.implicit"]
    )


def modules_of(union):
    return [plugin.__module__ for plugin in get_args(get_args(union)[0])]


def test_another_way_of_judging_asks_and_teaches_no_model_again():
    stages = [f"calibration.jobs.{name}" for name in ("obtain", "infer", "train")]
    plugins = [*modules_of(EngineConfig), *modules_of(MethodConfig), *modules_of(WeightsConfig)]
    reached = fingerprint.closure([*stages, "calibration.stages.data", *plugins])
    assert "calibration.prompts" in reached
    assert [name for name in reached if name.startswith("calibration.judges")] == []


def test_another_way_of_asking_judges_no_answer_again_but_another_judging_prompt_does():
    judges = [judge for judge in get_args(get_args(JudgeConfig)[0]) if issubclass(judge, LanguageJudge)]
    assert len(judges) == 3
    for judge in judges:
        reached = fingerprint.closure(["calibration.stages.judging", judge.__module__])
        assert "calibration.judges.prompts" in reached
        assert "calibration.prompts" not in reached
