"""The cells of a sweep, and that the right one is chosen for the right reason."""

import numpy as np
import pytest
from scipy.special import expit

from calibration.config import Experiment
from calibration.errors import ConfigurationError
from calibration.systems import Scores, System
from calibration.variants import expand, rank, read_values

EXPERIMENT = Experiment.model_validate(
    {
        "name": "small",
        "data": {"kind": "world"},
        "models": {"tiny": {"weights": {"kind": "pocket"}}},
        "judge": {"kind": "exact"},
        "methods": {"dpo": {"kind": "dpo", "loss_type": ["ipo"]}, "implicit": {"kind": "implicit"}},
    }
)


def test_a_grid_crosses_the_settings_of_one_method_and_leaves_the_rest_alone():
    found = expand(EXPERIMENT, {"methods.dpo.beta": [0.05, 0.3], "methods.dpo.optimisation.epochs": [1, 2]})
    assert {
        name: (m.kind, m.beta, m.optimisation.epochs, m.loss_type) for name, m in found.methods.items()
    } == {
        "dpo-beta-0.05-epochs-1": ("dpo", 0.05, 1, ("ipo",)),
        "dpo-beta-0.05-epochs-2": ("dpo", 0.05, 2, ("ipo",)),
        "dpo-beta-0.3-epochs-1": ("dpo", 0.3, 1, ("ipo",)),
        "dpo-beta-0.3-epochs-2": ("dpo", 0.3, 2, ("ipo",)),
    }
    assert found.model_copy(update={"methods": EXPERIMENT.methods}) == EXPERIMENT


def test_methods_have_grids_of_their_own():
    found = expand(EXPERIMENT, {"methods.dpo.beta": [0.1], "methods.implicit.weight": [1.0, 1e-3]})
    assert list(found.methods) == ["dpo-beta-0.1", "implicit-weight-1", "implicit-weight-0.001"]


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({}, "must be over a setting"),
        ({"prices.value": [1]}, "methods.dpo.SETTING"),
        ({"methods.hybrid.beta": [1]}, "methods.implicit.SETTING"),
        ({"methods.dpo.beta": []}, "must have a value"),
        ({"methods.dpo.beta": [0.1, 0.1]}, "a name of its own"),
        ({"methods.dpo.beta": [-1.0]}, "beta: Input should be greater than 0; got -1.0"),
        ({"methods.dpo.betta": [1.0]}, "did you mean"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_line(over, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        expand(EXPERIMENT, over)
    assert "\n" not in str(caught.value)


def test_a_sweep_without_validation_questions_is_refused():
    splits = {"train": 0.5, "calibration": 0.2, "validation": 0.0, "test": 0.3}
    without = Experiment.model_validate({**EXPERIMENT.model_dump(mode="json"), "splits": splits})
    with pytest.raises(ConfigurationError, match="validation"):
        expand(without, {"methods.dpo.beta": [0.1]})


def test_values_are_read_as_toml_and_else_as_words():
    assert read_values("methods.dpo.beta=0.1, 1e-3,2") == ("methods.dpo.beta", [0.1, 0.001, 2])
    assert read_values("a=true,false") == ("a", [True, False])
    with pytest.raises(ConfigurationError, match="must be over such as"):
        read_values("methods.dpo.beta")


def system(name, *, sharp, seed=0, right=0.5, n=600):
    """A model whose confidence tells right from wrong the better, the sharper it is."""
    rng = np.random.default_rng(seed)
    parts = {}
    for split in ("calibration", "validation"):
        correct = (np.random.default_rng(1).random(n) < right).astype(float)
        confidence = expit(rng.normal(size=n) + sharp * correct)
        parts[split] = Scores(tuple(f"{split}-{i}" for i in range(n)), confidence, correct)
    return System(name, "geometric_mean", parts)


def test_the_cell_whose_confidence_knows_most_is_chosen():
    base = system("base", sharp=1.0)
    cells = {"blunt": system("blunt", sharp=0.5, seed=2), "sharp": system("sharp", sharp=2.0, seed=3)}
    found = rank(base, cells, {"broken": "JobError: it ended"}, seed=0)
    assert found.chosen == "sharp"
    assert [cell.name for cell in found.cells] == ["sharp", "blunt", "broken"]
    assert found.cells[0].skill > found.base.skill > found.cells[1].skill
    assert found.cells[2].problem == "JobError: it ended"


def test_a_cell_that_pays_with_accuracy_or_cannot_be_read_is_not_chosen():
    base, plain = system("base", sharp=1.0), system("plain", sharp=0.8, seed=2)
    costly = system("costly", sharp=4.0, right=0.3)
    unread = system("unread", sharp=4.0)
    for scores in unread.scores_by_split.values():
        scores.confidence[::10] = np.nan
    found = rank(base, {"costly": costly, "unread": unread, "plain": plain}, {}, seed=0)
    assert found.chosen == "plain"
    problems = {cell.name: cell.problem for cell in found.cells}
    assert "loses accuracy" in problems["costly"]
    assert problems["unread"] == "only 540 of 600 confidences can be read"
    assert rank(base, {"costly": costly}, {}, seed=0).chosen is None
