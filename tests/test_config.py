from pathlib import Path

import pytest

from calibration.backends.modal import Modal
from calibration.config import load_experiment
from calibration.errors import ConfigurationError, DataError
from calibration.methods import Dpo, Implicit

EXPERIMENTS = sorted((Path(__file__).parent.parent / "deployments" / "experiments").glob("*.toml"))

SMALL = """
name = "small"
[data]
kind = "world"
[models.pocket.weights]
kind = "pocket"
[judge]
kind = "exact"
[methods.dpo]
kind = "dpo"
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_experiment_loads_and_is_named_after_its_file(path):
    assert load_experiment(path).name == path.stem


def shipped(name):
    return load_experiment(next(path for path in EXPERIMENTS if path.stem == name))


@pytest.mark.parametrize("name", ["pocket-seed", "seed"])
def test_the_literal_experiments_hold_the_specification_word_for_word(name):
    experiment = shipped(name)
    assert experiment.methods == {"dpo": Dpo.literal(), "implicit": Implicit.literal()}
    for method in experiment.methods.values():
        assert method.optimisation.learning_rate == 1e-5
        assert method.optimisation.epochs == 3
        assert (method.optimisation.batch_size, method.optimisation.accumulation) == (4, 4)
        assert (method.lora.rank, method.lora.alpha) == (16, 32)
        assert method.lora.targets == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert experiment.methods["dpo"].beta == 0.1
    assert experiment.methods["dpo"].minimum_gap == 0.3
    assert experiment.methods["implicit"].weight == 0.1


def test_the_seed_measures_its_three_models_on_its_questions_as_it_says():
    experiment = shipped("seed")
    assert [model.weights.repo for model in experiment.models.values()] == [
        "google/gemma-2-9b-it",
        "google/gemma-2-2b-it",
        "Qwen/Qwen2.5-1.5B-Instruct",
    ]
    assert {model.engine.kind for model in experiment.models.values()} == {"vllm"}
    assert (experiment.data.kind, experiment.readout) == ("simpleqa", "geometric_mean_all")
    assert experiment.target == "gemma-2-2b-it"
    # 1000 to learn from, and as many that are held out.
    assert experiment.data.limit * experiment.splits.train == 1000
    assert experiment.data.limit * experiment.splits.test == 1000
    assert (experiment.judge.kind, experiment.judge.concurrency) == ("gemini", 100)
    assert Modal().infer_gpu == Modal().train_gpu == "A100-40GB"


def test_the_recommended_protocol_is_the_same_for_both_models():
    one, other = shipped("gemma-2-2b"), shipped("qwen2.5-1.5b")
    same = {"name", "models"}
    assert one.model_dump(exclude=same) == other.model_dump(exclude=same)
    assert {kind.kind for name, kind in one.data.sets.items() if name not in one.data.shift} == {
        "triviaqa",
        "nq_open",
    }
    assert one.data.shift == ("simpleqa",)


def test_both_pocket_experiments_share_all_that_comes_before_training():
    one, other = shipped("pocket"), shipped("pocket-seed")
    same = {"name", "methods"}
    assert one.model_dump(exclude=same) == other.model_dump(exclude=same)


def test_a_change_reaches_its_setting(small):
    changes = ["methods.dpo.beta=0.3", "methods.dpo.targets=moderate", 'splits.shift_topics=["Sports"]']
    experiment = load_experiment(small, changes)
    assert experiment.methods["dpo"].beta == 0.3
    assert experiment.methods["dpo"].targets == "moderate"
    assert experiment.splits.shift_topics == ("Sports",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("methods.dpo.betta=1", r"methods\.dpo\.betta: no such setting; did you mean beta"),
        ("methods.dpo.beta=-1", r"methods\.dpo\.beta: .*greater than 0; got -1"),
        ("methods.dpo.kind=dpoo", r"methods\.dpo: .*'dpo', 'implicit'"),
        ("methods.base.kind=dpo", "must not be named 'base'"),
        ("data.entities=3", r"data\.entities: no such setting; did you mean entities_per_topic"),
        ("target=gemma", r"small\.toml: target must be one of pocket; got 'gemma'"),
        ("readout=sideways", "readout: "),
        ("splits.train=0.9", "must sum to 1"),
        ("name=A B", "name: "),
        ("methods.dpo", "a change must look like"),
        ("name.x=1", "name is a value"),
        (".seed=1", "a change must look like"),
        ("methods..beta=1", "a change must look like"),
        ("llm_accuracy=0.8", r"llm_accuracy: no such setting; did you mean prices\.llm_accuracy\?"),
        ("methods.dpo.rank=8", r"methods\.dpo\.rank: .*did you mean methods\.NAME\.lora\.rank\?"),
        ("zzz=1", r"zzz: no such setting; see docs/experiment\.md"),
        ("seed=many", "seed: .*; got 'many'"),
        ('name="a\nb"', "name: "),
        ("seed=-1", "seed: "),
    ],
)
def test_what_no_experiment_can_be_is_refused_in_one_line(small, change, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_experiment(small, [change])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_toml_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nothing\.toml must be an experiment; No such file"):
        load_experiment(tmp_path / "nothing.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigurationError, match=r"bad\.toml must be TOML"):
        load_experiment(tmp_path / "bad.toml")


def test_recorded_answers_cannot_be_taught(small):
    changes = ["models.pocket.weights=", 'models={m={engine={kind="recorded",path="x",probabilities="p"}}}']
    with pytest.raises(ConfigurationError, match="must have weights to be taught"):
        load_experiment(small, changes[1:])


def audited(folder, marks, truths):
    """An audit of `exact@1`, whose every answer a person has looked at."""
    rows = [
        f"q{n},What is {n}?,Ann,Ann,{label},exact@1,{truth}"
        for n, (label, truth) in enumerate(zip(marks, truths, strict=True))
    ]
    path = folder / "audited.csv"
    path.write_text("\n".join(["id,question,gold,answer,verdict,judge,truth", *rows]))
    return path


def test_an_audit_fills_in_the_setting_that_waits_for_it_and_no_other(small, tmp_path):
    path = audited(tmp_path, ["correct"] * 8 + ["incorrect"] * 12, [1] * 7 + [0] + [0] * 10 + [1] * 2)
    changes = [
        f"judge_audit.path={path}",
        "methods.dpo.label_smoothing=audited",
        'methods.dpo.loss_type=["robust", "sft"]',
        "methods.other.kind=dpo",
    ]
    experiment = load_experiment(small, changes)
    informed = experiment.informed()
    assert informed.methods["dpo"].label_smoothing == 3 / 20
    assert experiment.methods["dpo"].label_smoothing == "audited"
    assert informed.methods["other"] == experiment.methods["other"]
    assert experiment.read_audit().sensitivity.value == 7 / 9


def test_without_an_audit_nothing_can_wait_for_it(small):
    changes = ["methods.dpo.label_smoothing=audited", 'methods.dpo.loss_type=["robust"]']
    with pytest.raises(ConfigurationError, match=r"label_smoothing = 'audited' must have a \[judge_audit\]"):
        load_experiment(small, changes)
    assert load_experiment(small).informed() == load_experiment(small)


def test_a_judge_that_mostly_errs_is_nothing_to_learn_from(small, tmp_path):
    path = audited(tmp_path, ["correct"] * 12 + ["incorrect"] * 2, [1] * 4 + [0] * 8 + [0] * 2)
    plain = load_experiment(small, [f"judge_audit.path={path}"])
    assert plain.informed() == plain
    waiting = ["methods.dpo.label_smoothing=audited", 'methods.dpo.loss_type=["robust"]']
    with pytest.raises(DataError, match=r"wrong in less than half .* finds 0\.571"):
        load_experiment(small, [f"judge_audit.path={path}", *waiting]).informed()
