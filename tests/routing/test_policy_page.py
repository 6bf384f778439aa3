"""What docs/router-policy.md says is so: its reader decides as `Router` does, its example is a policy."""

import math
import re
from datetime import UTC, timedelta
from pathlib import Path

import numpy as np
import pytest

from calibration.maps import fit_identity, fit_platt, fit_temperature
from calibration.routing.goals import Budget, Certified, CostOptimal, Reference
from calibration.routing.policy import Router, RouterPolicy

PAGE = (Path(__file__).parents[2] / "docs" / "router-policy.md").read_text(encoding="utf-8")
GOALS = (
    Certified(accuracy=0.8),
    Certified(accuracy=0.99),
    CostOptimal(),
    Budget(escalated=0.3),
    Budget(escalated=1),
    Reference(),
)


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture(scope="module")
def reader():
    names = {}
    exec(block("python"), names)  # noqa: S102 - the page's own code
    return names


def test_the_reader_is_short_and_needs_nothing():
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    assert re.findall(r"^\s*(?:import|from) (\S+)", code, re.MULTILINE) == ["json", "math"]


@pytest.mark.parametrize("rule", GOALS, ids=lambda rule: "-".join(map(str, rule.model_dump().values())))
@pytest.mark.parametrize("fit_map", [fit_platt, fit_identity], ids=["platt", "identity"])
@pytest.mark.parametrize("decimals", [None, 1])
def test_the_reader_decides_as_the_router_does(draw, make, reader, tmp_path, rule, fit_map, decimals):
    """On random confidences, the fitted ones (many at the cut), the ends, unreadable ones, and in time."""
    fit = draw(1000, 2, decimals=decimals)
    policy = make(fit, rule=rule, fit_map=fit_map)
    path = tmp_path / "router_policy.json"
    policy.write(path)
    theirs, ours = reader["load"](path), Router.load(path)
    rng = np.random.default_rng(0)
    values = [*rng.random(300).tolist(), *fit.confidence.tolist(), 0.0, 1.0, 1e-9, None, math.nan]
    seconds = rng.integers(-5, 5, len(values)).tolist()
    kept = []
    for value, second in zip(values, seconds, strict=True):
        now = policy.expires + timedelta(seconds=second)
        found = reader["keep"](theirs, value, now.strftime("%Y-%m-%dT%H:%M:%SZ"))
        assert found == ours.decide("q", confidence=value, now=now).keep
        assert not (found and second >= 0)
        kept.append(found)
    assert any(kept) == (policy.threshold is not None)
    assert not all(kept)


@pytest.mark.parametrize("offset", [-900.0, 0.0, 900.0])
def test_the_reader_survives_maps_at_the_ends_of_the_number_line(make, reader, offset):
    chosen = make().map.model_copy(update={"offset": offset})
    for value in (0.0, 0.3, 1.0):
        found = reader["probability"](chosen.model_dump(), value)
        assert found == pytest.approx(float(chosen(value)), rel=1e-12)


def test_the_reader_refuses_what_it_does_not_know(make, reader, tmp_path):
    path = tmp_path / "policy.json"
    policy = make(fit_map=fit_temperature)
    policy.write(path)
    with pytest.raises(ValueError, match="unknown map 'temperature'"):
        reader["keep"](reader["load"](path), 0.5, "2026-12-01T00:00:00Z")
    path.write_text(path.read_text().replace("policy@1", "policy@2"))
    with pytest.raises(ValueError, match=r"unknown format .*@2'"):
        reader["load"](path)


def test_the_example_is_a_policy_that_agrees_with_itself():
    policy = RouterPolicy.model_validate_json(block("json"))
    assert policy.expires.tzinfo == UTC
    for share in [rate for _, rate in policy.expected if hasattr(rate, "count")]:
        assert share.value == pytest.approx(share.count / share.total, abs=1e-3)
    expected, prices = policy.expected, policy.prices
    right = expected.kept_accuracy.count + expected.escalated.count * prices.llm_accuracy
    assert expected.system_accuracy == pytest.approx(right / expected.escalated.total, abs=1e-4)
    cost = prices.slm_cost + expected.escalated.value * prices.llm_cost
    assert expected.cost_per_question == pytest.approx(cost)
    cut = float(policy.map(policy.certificate.threshold))
    assert policy.threshold == pytest.approx(cut, abs=0.01)


def test_the_embedding_example_runs(make, tmp_path, monkeypatch):
    make(readout="geometric_mean").write(tmp_path / "router_policy.json")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block("python no-run"), names)  # noqa: S102 - the page's own code
    assert names["decision"].question == "Who founded Rome?"


def test_every_field_rule_readout_and_map_is_explained():
    schema = RouterPolicy.model_json_schema()
    fields = set(schema["properties"])
    for name, part in schema["$defs"].items():
        properties = part.get("properties", {})
        if "kind" in properties:
            fields.add(properties["kind"]["const"])
        fields |= set(properties) - {"kind"}
        assert properties, name
    readouts = {name for option in schema["properties"]["readout"]["anyOf"] for name in _names(option)}
    missing = sorted(name for name in fields | readouts if f"`{name}`" not in PAGE)
    assert missing == []


def _names(option):
    return option.get("enum", [option.get("const")])
