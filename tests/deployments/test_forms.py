"""The forms of the Prefect UI: what they show, what they refuse, and what becomes of what was filled in."""

import asyncio
import re

import pytest
import yaml
from prefect.utilities.schema_tools.validation import ValidationError, validate

from calibration.backends.local import Local
from calibration.backends.modal import Modal
from calibration.config import load_experiment
from calibration.errors import ConfigurationError
from deployments.entries import ENTRIES
from deployments.forms import EXPERIMENTS, FOLDER, Changes, Usual, changed, form_of, place_of
from deployments.serving import deployed

FORMS = {entry.name: entry.flow.parameters.model_dump() for entry in ENTRIES}
PREFECT_YAML = yaml.safe_load((FOLDER.parent / "prefect.yaml").read_text(encoding="utf-8"))


def pocket(**changes):
    return changed(load_experiment(FOLDER / "pocket.toml"), Changes.model_validate(changes))


def settings(form):
    """Every setting of a form as (its path of definitions, its JSON Schema)."""
    for name, part in {"": form, **form["definitions"]}.items():
        for key, field in part.get("properties", {}).items():
            yield f"{name}.{key}", field


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_left_open_is_as_in_the_experiment(name):
    shipped = load_experiment(FOLDER / f"{name}.toml")
    assert changed(shipped, Changes()) == shipped


def test_a_change_in_the_form_is_the_same_change_on_the_command_line():
    changes = [
        "seed=3",
        'splits.shift_topics=["Music"]',
        "data.entities_per_topic=24",
        "prices.llm_accuracy=0.8",
    ]
    assert pocket(
        seed=3,
        splits={"shift_topics": ["Music"]},
        data={"kind": "world", "entities_per_topic": 24},
        prices={"llm_accuracy": 0.8},
    ) == load_experiment(FOLDER / "pocket.toml", changes)


def test_of_what_is_listed_by_name_the_listed_is_left_each_over_what_the_experiment_has():
    listed = [
        {"name": "dpo", "kind": "dpo", "beta": 0.3, "optimisation": {"epochs": 5}},
        {"name": "implicit"},
    ]
    changes = ["methods.dpo.beta=0.3", "methods.dpo.optimisation.epochs=5"]
    assert pocket(methods=listed) == load_experiment(FOLDER / "pocket.toml", changes)
    assert list(pocket(methods=listed[:1]).methods) == ["dpo"]
    assert pocket(methods=[]) == pocket()


def test_another_kind_begins_with_its_own_defaults():
    changed = pocket(methods=[{"name": "dpo", "kind": "implicit"}]).methods["dpo"]
    assert changed == type(changed)()


def test_where_it_runs_is_this_machine_unless_it_is_said():
    assert place_of(Usual()) == Local()
    assert place_of(form_of(Local)(at_once=1)) == Local(at_once=1)
    assert place_of(form_of(Modal)(infer_minutes=7)) == Modal(infer_minutes=7)
    with pytest.raises(ConfigurationError, match="on: infer_gpu must be one of"):
        place_of(form_of(Modal)(infer_gpu="X1"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"splits": {"train": 0.9}}, "pocket: splits: split fractions must sum to 1"),
        ({"target": "gemma"}, "pocket: target must be one of pocket; got 'gemma'"),
        ({"methods": [{"name": "other"}]}, "pocket: methods.other: Unable to extract tag"),
        ({"data": {"kind": "table"}}, "pocket: data.path: Field required"),
    ],
)
def test_what_no_experiment_can_be_is_refused_in_a_sentence(changes, sentence):
    with pytest.raises(ConfigurationError) as caught:
        pocket(**changes)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", FORMS)
def test_every_setting_has_a_title_and_a_sentence(entry):
    for place, field in settings(FORMS[entry]):
        assert field.get("title") or "$ref" in field, place
        assert field.get("description"), place
    for name, part in FORMS[entry]["definitions"].items():
        assert part["title"], name
        assert part["description"], name
        assert not re.search(r"_|^Form|^Named", part["title"]), name


@pytest.mark.parametrize("entry", FORMS)
def test_no_setting_has_to_be_filled_in_as_json(entry):
    for place, field in settings(FORMS[entry]):
        shapes = {"type", "enum", "$ref", "anyOf"} & set(field)
        assert shapes, place
        assert "additionalProperties" not in field, place


@pytest.mark.parametrize("entry", FORMS)
def test_no_parameter_is_a_secret(entry):
    for place, field in settings(FORMS[entry]):
        assert field.get("format") != "password", place
        assert "writeOnly" not in field, place
        name = place.rpartition(".")[2]
        assert not re.search(r"(^|_)(key|secret|password|credentials?|token)$", name) or name in {
            "pad_token",
            "end_token",
        }, place


@pytest.mark.parametrize("entry", FORMS)
def test_the_form_as_it_is_can_be_sent(entry):
    validate({}, FORMS[entry], raise_on_error=True)
    assert FORMS[entry]["required"] == []
    if entry != "remeasure":  # which goes by the experiment of a run
        assert FORMS[entry]["properties"]["experiment"]["default"] == "pocket"
        assert FORMS[entry]["properties"]["experiment"]["enum"] == EXPERIMENTS


IMPOSSIBLE = {
    "no such experiment": ({"experiment": "pockett"}, "'experiment'", "is not one of"),
    "too small": (
        {"changes": {"data": {"kind": "world", "entities_per_topic": 1}}},
        "'changes.data.entities_per_topic'",
        "1 is less than the minimum of 4",
    ),
    "too large": (
        {"changes": {"splits": {"train": 3}}},
        "'changes.splits.train'",
        "greater than the maximum",
    ),
    "out of bounds in a list": (
        {"changes": {"methods": [{"name": "implicit"}, {"name": "dpo", "kind": "dpo", "beta": 0}]}},
        "'changes.methods[1].beta'",
        "0 is less than or equal to the minimum of 0",
    ),
    "no such choice": ({"changes": {"readout": "sideways"}}, "'changes.readout'", "is not one of"),
    "no such kind": ({"changes": {"judge": {"kind": "oracle"}}}, "'changes.judge.kind'", "is not one of"),
    "no such setting": ({"changes": {"zzz": 1}}, "'changes'", "'zzz' was unexpected"),
    "no such setting of a kind": (
        {"changes": {"methods": [{"name": "dpo", "kind": "dpo", "betta": 1}]}},
        "'changes.methods[0]'",
        "'betta' was unexpected",
    ),
    "no name": (
        {"changes": {"methods": [{"name": "A B", "kind": "dpo"}]}},
        "'changes.methods[0].name'",
        "does not match",
    ),
    "no such place": (
        {"on": {"kind": "moon"}},
        "'on.kind'",
        "'moon' is not one of ['local', 'modal', 'dask']",
    ),
    "no number": ({"changes": {"seed": "many"}}, "'changes.seed'", "'many' is not"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_the_server_refuses_what_is_impossible_with_place_and_reason(case):
    parameters, place, reason = IMPOSSIBLE[case]
    with pytest.raises(ValidationError) as caught:
        validate(parameters, FORMS["calibrate"], raise_on_error=True)
    assert place in str(caught.value)
    assert reason in str(caught.value)


def test_what_is_chosen_by_tabs_is_shown_by_tabs():
    form = FORMS["calibrate"]["definitions"]["FormExperiment"]["properties"]
    titles = [
        FORMS["calibrate"]["definitions"][choice["$ref"].rpartition("/")[2]]["title"]
        for choice in form["data"]["anyOf"]
    ]
    assert titles == ["Unchanged", "World", "Table", "SimpleQA", "TriviaQA", "NQ open", "Mixture"]


async def declared(entry):
    """What serving an entry registers."""
    made = await deployed(entry)
    schedules = [
        {"cron": own.schedule.cron, "timezone": own.schedule.timezone, "active": own.active}
        for own in made.schedules or []
    ]
    return made.name, made.entrypoint, made.tags, schedules, made.concurrency_limit


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_work_pool_is_given_what_is_served(entry):
    name, entrypoint, tags, schedules, limit = asyncio.run(declared(entry))
    [written] = [own for own in PREFECT_YAML["deployments"] if own["name"] == entry.name]
    assert (written["name"], written["entrypoint"]) == (name, entrypoint)
    assert ":" not in entrypoint, "a path would put its folder first among the modules"
    assert written["tags"] == tags
    assert written.get("schedules", []) == schedules
    assert written.get("concurrency_limit") == limit
    assert len(PREFECT_YAML["deployments"]) == len(ENTRIES)
