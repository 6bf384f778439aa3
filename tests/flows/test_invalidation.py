"""Each row of the table in docs/resuming.md: what changes, and which stages then have another key."""

import asyncio
import fnmatch
import inspect
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from calibration import fingerprint
from calibration.artifacts import Artifact
from calibration.backends.local import Local
from calibration.backends.modal import Modal
from calibration.config import Experiment
from flows import pipeline
from tasks.show import summarise
from tasks.stage import stage_key

PAGE = Path(__file__).parents[2] / "docs" / "resuming.md"
STAGES = ("prepare_questions", "write_corpus", "obtain", "infer", "merge", "judge", "make_data", "train")
TITLES = {"prepare_questions": "prepare questions", "write_corpus": "prepare corpus", "make_data": "data"}
WORLD = {"kind": "world", "entities_per_topic": 8, "pool_size": 4}
METHODS = ("dpo", "implicit")
TRAINED = ["train *"] + [f"{stage} {name} *" for stage in ("infer", "judge", "summarise") for name in METHODS]
SHORT = {
    "everything": ["*"],
    "judged": ["judge *", "summarise *"],
    "trained": TRAINED,
    "methods": ["data *", *TRAINED],
    "report": ["evaluate", "draw"],
}
"""The words of the table that stand for several stages."""
GEMINI = {"kind": "gemini", "model": "gemini-3.1-flash-lite"}


def table():
    """The rows of the page's first table: what changes, and what is then run again."""
    lines = PAGE.read_text(encoding="utf-8").partition("|---|---|\n")[2].partition("\n\n")[0].splitlines()
    return dict([cell.strip() for cell in line.strip("|").split("|")] for line in lines)


def expanded(cell, stages):
    """The stages of an experiment that a cell of the table names."""
    words = re.findall(r"`([^`]+)`", cell)
    patterns = [pattern for word in words for pattern in SHORT.get(word, [word])]
    found = {stage for stage in stages if any(fnmatch.fnmatch(stage, pattern) for pattern in patterns)}
    for pattern in patterns:
        assert fnmatch.filter(found, pattern) or "train dpo" not in stages, f"no stage {pattern}"
    return found


def keys(experiment, monkeypatch, on=None):
    """The key of every stage of an experiment, by the stage's name.

    The questions are made; of every later stage only the key is, and its result is taken to depend on all
    that the key is made of, but for what decides whether it fails.
    """
    found = {}

    def only_keyed(stage):
        function = stage.__wrapped__

        async def run(*args, **kwargs):
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            inputs = dict(bound.arguments)
            title = TITLES.get(function.__name__, function.__name__)
            found[f"{title} {inputs.get('label', '')}".strip()] = stage_key(function, inputs)
            if function.__name__ in {"prepare_questions", "write_corpus"}:
                return await function(*args, **kwargs)
            inputs.pop("max_unjudged", None)
            return Artifact(kind=function.__name__, sha256=stage_key(function, inputs))

        return run

    async def nothing(*args):
        pass

    with monkeypatch.context() as patched:
        for name in (*STAGES, "evaluate", "draw"):
            patched.setattr(pipeline, name, only_keyed(getattr(pipeline, name)))
        patched.setattr(pipeline, "show_answers", only_keyed(summarise))
        for name in ("show_data", "show_training", "publish"):
            patched.setattr(pipeline, name, nothing)
        asyncio.run(both(experiment, on or Local()))
    return found


async def both(experiment, on):
    await pipeline.teach_and_compare(experiment, await pipeline.measure_all(experiment, on), on)


def experiment(**changes):
    settings = {
        "name": "e",
        "data": {**WORLD},
        "models": {
            "a": {"weights": {"kind": "pocket", "width": 64}},
            "b": {"weights": {"kind": "pocket", "width": 96}, "elicitations": ["plain"]},
        },
        "judge": {"kind": "exact"},
        "methods": {"dpo": {"kind": "dpo"}, "implicit": {"kind": "implicit"}},
    }
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            del place[leaf]
        else:
            place[leaf] = value
    return TypeAdapter(Experiment).validate_python(settings)


def recorded(folder, answers="answers.csv", judge="answers.csv", questions="questions.csv"):
    """An experiment on tables alone."""
    return TypeAdapter(Experiment).validate_python(
        {
            "name": "recorded",
            "data": {"kind": "table", "path": folder / questions},
            "splits": {"train": 0, "calibration": 0, "validation": 0, "test": 1},
            "models": {"a": {"engine": {"kind": "recorded", "path": folder / answers, "logprobs": "p"}}},
            "judge": {"kind": "recorded", "path": folder / judge},
        }
    )


@pytest.fixture
def tables(tmp_path):
    """A folder with tables, with others, and with an audit of the judge."""
    for name, rows in {
        "questions": "question,answer\na?,a\nb?,b\nc?,c\nd?,d\n",
        "other-questions": "question,answer\na?,a\nb?,b\nc?,c\ne?,e\n",
        "answers": "question,response,p\n",
        "other-answers": "question,response,p\na?,a,[-1]\n",
    }.items():
        (tmp_path / f"{name}.csv").write_text(rows)
    for name in ("questions", "answers"):
        (tmp_path / f"moved-{name}.csv").write_bytes((tmp_path / f"{name}.csv").read_bytes())
    for name, wrong in {"audit": 2, "other-audit": 3}.items():
        marks = [(mark, truth) for mark in (1, 0) for truth in [mark] * (20 - wrong) + [1 - mark] * wrong]
        rows = [
            f"{number},q,g,a{number},{'correct' if mark else 'incorrect'},exact@1,{truth}"
            for number, (mark, truth) in enumerate(marks)
        ]
        (tmp_path / f"{name}.csv").write_text(
            "\n".join(["id,question,gold,answer,verdict,judge,truth", *rows])
        )
    return tmp_path


def setting(given=None, **changes):
    """A change of settings, from the small experiment or one that differs from it as given."""
    given = given or {}
    return lambda monkeypatch, tables: (
        keys(experiment(**given), monkeypatch),
        keys(experiment(**given, **changes), monkeypatch),
    )


def judging(**changes):
    """The same, where a model judges."""
    return lambda monkeypatch, tables: (
        keys(experiment(judge=GEMINI), monkeypatch),
        keys(experiment(judge={**GEMINI, **changes}), monkeypatch),
    )


def table_in_place_of(**changes):
    """Another file in an experiment on tables."""
    return lambda monkeypatch, tables: (
        keys(recorded(tables), monkeypatch),
        keys(recorded(tables, **{name: f"{file}.csv" for name, file in changes.items()}), monkeypatch),
    )


def place(on):
    """Another backend."""
    return lambda monkeypatch, tables: (
        keys(experiment(), monkeypatch),
        keys(experiment(), monkeypatch, on),
    )


def code(module, judge=None):
    """Other code of a module."""

    def change(monkeypatch, tables):
        chosen = experiment(judge=judge or {"kind": "exact"})
        before = keys(chosen, monkeypatch)
        with changed_code(module, monkeypatch):
            return before, keys(chosen, monkeypatch)

    return change


def library(name):
    """Another version of a library."""

    def change(monkeypatch, tables):
        before = keys(experiment(), monkeypatch)
        with changed_library(name, monkeypatch):
            return before, keys(experiment(), monkeypatch)

    return change


def comment(monkeypatch, tables):
    before = keys(experiment(), monkeypatch)
    with changed_comment("calibration.methods.dpo", monkeypatch, tables):
        return before, keys(experiment(), monkeypatch)


def audit(**changes):
    """Other marks in the audit of the judge."""

    def change(monkeypatch, tables):
        return tuple(
            keys(experiment(judge_audit={"path": tables / f"{name}.csv"}, **changes), monkeypatch)
            for name in ("audit", "other-audit")
        )

    return change


SMOOTHED = {"kind": "dpo", "label_smoothing": "audited", "loss_type": ["robust", "sft"]}
CHANGES = {
    "`name`": setting(name="f"),
    "`seed`": setting(seed=3),
    "`data`: a setting of the world": setting(data__entities_per_topic=9),
    "`data`: the content of a table": table_in_place_of(questions="other-questions"),
    "`data`: the same table at another place": table_in_place_of(questions="moved-questions"),
    "`splits`": setting(splits={"train": 0.3, "calibration": 0.2, "validation": 0.2, "test": 0.3}),
    "`shards.size`": setting(shards__size=20),
    "`shards.at_once`": setting(shards__at_once=3),
    "`models.b`: weights": setting(models__b__weights__width=128),
    "`models.b`: a setting of its engine": setting(models__b__engine={"kind": "hf", "max_tokens": 9}),
    "`models.b`: the content of recorded answers": table_in_place_of(answers="other-answers"),
    "`models.b`: it is asked in another way, too": setting(models__b__elicitations=["plain", "stated"]),
    "`models.a`: weights": setting(models__a__weights__width=128),
    "`models.a`: a setting of its engine": setting(models__a__engine={"kind": "hf", "max_tokens": 9}),
    "`target`": setting({"models__b__elicitations": None}, target="b"),
    "`judge`: who, the model, how much it may think": judging(model="gemini-3.5-flash"),
    "`judge`: its limits, such as `max_usd` and `concurrency`": judging(max_usd=9, concurrency=2),
    "`judge`: the content of recorded labels": table_in_place_of(judge="other-answers"),
    "`judge_audit`: other marks": audit(),
    "`judge_audit`: other marks, where `dpo` has an `audited` setting": audit(methods__dpo=SMOOTHED),
    "`max_unjudged`": setting(max_unjudged=0.5),
    "`methods.dpo`: a setting": setting(methods__dpo__beta=0.3),
    "`readout`": setting(readout="joint"),
    "`prices`": setting(prices__llm_accuracy=0.7),
    "`router`": setting(router={"kind": "certified", "accuracy": 0.9}),
    "`drift`, which decides about a re-measurement": setting(drift={"gap": 0.2}),
    "`--backend`": place(Modal()),
    "`--on at_once=1`": place(Local(at_once=1)),
    "`threads`, of which the last digits depend": setting(threads=2),
    "code: `calibration/sources/` or `calibration/worlds/`": code("calibration.worlds.facts"),
    "code: `calibration/splits.py`": code("calibration.splits"),
    "code: `calibration/prompts.py`, what a model is asked": code("calibration.prompts"),
    "code: `calibration/engines/hf.py`": code("calibration.engines.hf"),
    "code: an engine, a judge or a method that is not in the experiment": code("calibration.engines.vllm"),
    "code: `calibration/judges/exact.py`": code("calibration.judges.exact"),
    "code: `calibration/judges/prompts.py`, where a model judges": code("calibration.judges.prompts", GEMINI),
    "code: `calibration/methods/dpo.py`": code("calibration.methods.dpo"),
    "code: `calibration/methods/trainer.py`": code("calibration.methods.trainer"),
    "code: `calibration/metrics/`, `calibration/verdict.py`": code("calibration.verdict"),
    "code: `calibration/report/figures.py`": code("calibration.report.figures"),
    "code: `calibration/report/page.py`": code("calibration.report.page"),
    "code: `calibration/records.py`, `calibration/artifacts.py`": code("calibration.artifacts"),
    "code: `calibration/backends/`": code("calibration.backends.local"),
    "a comment, a docstring, the layout of code": comment,
    "version of torch, transformers or tokenizers": library("torch"),
    "version of peft": library("peft"),
    "version of trl or accelerate": library("trl"),
    "version of rapidfuzz, where `exact` judges": library("rapidfuzz"),
    "version of numpy or scipy": library("numpy"),
    "version of matplotlib": library("matplotlib"),
    "version of Prefect, pandas or pydantic": library("prefect"),
}


def test_every_row_of_the_table_is_tested():
    assert list(table()) == list(CHANGES)


def test_every_setting_of_an_experiment_has_a_row():
    assert set(Experiment.model_fields) <= set(re.findall(r"^`(\w+)", "\n".join(CHANGES), re.MULTILINE))


@pytest.mark.parametrize("row", CHANGES)
def test_what_changes_repeats_what_the_table_says(row, monkeypatch, tables):
    before, after = CHANGES[row](monkeypatch, tables)
    changed = {stage for stage in after if before.get(stage) != after[stage]}
    assert changed == expanded(table()[row], after)


@contextmanager
def changed_code(module, monkeypatch):
    before = fingerprint.module_digest
    with monkeypatch.context() as patched:
        patched.setattr(
            fingerprint, "module_digest", lambda name: before(name) + ("changed" if name == module else "")
        )
        yield


@contextmanager
def changed_library(library, monkeypatch):
    before = fingerprint.version
    with monkeypatch.context() as patched:
        patched.setattr(
            fingerprint, "version", lambda name: before(name) + (".changed" if name == library else "")
        )
        yield


@contextmanager
def changed_comment(module, monkeypatch, folder):
    """The module's source with another docstring, a comment and other spaces."""
    source, digest = fingerprint._source, fingerprint.module_digest
    copy = folder / "copy.py"
    copy.write_text("'''Another.'''\n# A comment.\n\n\n" + source(module).read_text(encoding="utf-8"))
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "_source", lambda name: copy if name == module else source(name))
        patched.setattr(
            fingerprint,
            "module_digest",
            lambda name: digest.__wrapped__(name) if name == module else digest(name),
        )
        yield
