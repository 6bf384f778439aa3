"""The file, and the one call that another program makes."""

import json
import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from calibration.artifacts import file_sha256
from calibration.confidence import expected, read_confidence
from calibration.errors import DataError
from calibration.maps import fit_histogram, fit_identity, fit_isotonic, fit_platt, fit_shift, fit_temperature
from calibration.records import Generation
from calibration.routing.goals import Budget, Certified, CostOptimal, Reference
from calibration.routing.policy import FORMAT, Digests, Router, Staleness, read_policy

ROOT = Path(__file__).parents[2]
MAPS = (fit_identity, fit_shift, fit_temperature, fit_platt, fit_histogram, fit_isotonic)
GOALS = (
    Certified(accuracy=0.8),
    CostOptimal(),
    Budget(escalated=0.3),
    Reference(),
    Certified(accuracy=0.999),
)


def numbers(content):
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [number for item in content for number in numbers(item)]
    return [content] if isinstance(content, float) else []


@pytest.mark.parametrize("rule", GOALS, ids=lambda rule: f"{rule.kind} {getattr(rule, 'accuracy', '')}")
@pytest.mark.parametrize("fit_map", MAPS, ids=lambda fit: fit.__name__)
def test_a_policy_read_back_decides_identically_and_holds_no_nan(make, tmp_path, rule, fit_map):
    policy = make(
        rule=rule, fit_map=fit_map, digests=Digests(model="sha256:abc"), groups={"topic": ["A"] * 600}
    )
    path = tmp_path / "router_policy.json"
    policy.write(path)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"JSON holds {name}"))
    assert all(math.isfinite(number) for number in numbers(content))
    again = Router.load(path)
    assert again.policy == policy
    rng, router = np.random.default_rng(0), Router(policy)
    for value in [*rng.random(200).tolist(), 0.0, 1.0, None, math.nan]:
        for now in (policy.created, policy.expires):
            assert again.decide("q", confidence=value, now=now) == router.decide(
                "q", confidence=value, now=now
            )


def test_the_dates_are_utc_seconds_so_that_their_text_sorts(make):
    zone = timezone(timedelta(hours=-5))
    policy = make(created=datetime(2026, 11, 24, 22, 30, 15, 999, tzinfo=zone), lifetime=timedelta(hours=1))
    content = json.loads(policy.model_dump_json())
    assert (content["created"], content["expires"]) == ("2026-11-25T03:30:15Z", "2026-11-25T04:30:15Z")


def test_probability_at_the_threshold_is_kept_and_the_reason_says_which(make):
    policy = make(rule=CostOptimal(), fit_map=fit_identity).model_copy(update={"threshold": 0.5})
    router, now = Router(policy), policy.created
    at = router.decide("Who?", confidence=0.5, now=now)
    below = router.decide("Who?", confidence=0.25, now=now)
    assert (at.question, at.keep, at.probability) == ("Who?", True, 0.5)
    assert at.reason == "probability 0.5 reaches the threshold 0.5"
    assert (below.keep, below.probability) == (False, 0.25)
    assert below.reason == "probability 0.25 is below the threshold 0.5"


def test_what_is_expired_infeasible_or_unreadable_escalates_and_says_so(make):
    policy = make()
    router = Router(policy)
    last = policy.expires - timedelta(microseconds=1)
    assert router.decide("q", confidence=1.0, now=last).keep
    expired = router.decide("q", confidence=1.0, now=policy.expires)
    assert (expired.keep, expired.probability) == (False, None)
    assert expired.reason == "the policy expired at 2027-02-22 10:00:00 UTC"
    unreadable = router.decide("q", confidence=None, now=policy.created)
    assert unreadable == router.decide("q", confidence=math.nan, now=policy.created)
    assert (unreadable.keep, unreadable.reason) == (False, "the confidence could not be read")
    hopeless = Router(make(rule=Certified(accuracy=0.99)))
    found = hopeless.decide("q", confidence=1.0, now=policy.created)
    assert (found.keep, found.probability) == (False, None)
    assert found.reason.startswith("nothing can be kept: no threshold keeps")
    everything = Router(make(rule=Budget(escalated=1)))
    assert (
        everything.decide("q", confidence=1.0, now=policy.created).reason == "the policy escalates everything"
    )


def test_the_clock_is_read_when_no_time_is_given(make):
    past = make(created=datetime(2001, 1, 1, tzinfo=UTC))
    assert "expired" in Router(past).decide("q", confidence=1.0).reason
    fresh = make(created=datetime.now(UTC))
    assert Router(fresh).decide("q", confidence=1.0).keep
    with pytest.raises(DataError, match="must have a time zone"):
        Router(fresh).decide("q", confidence=1.0, now=datetime(2026, 11, 24))  # noqa: DTZ001 - refused for it


def generation(**changes):
    row = {
        "question_id": "q",
        "elicitation": "plain",
        "text": "Paris.",
        "answer": "Paris",
        "token_ids": (),
        "tokens": ("Par", "is", ".", "<eos>"),
        "logprobs": (-0.5, -0.25, -3.0, -0.01),
        "span": (0, 1),
        "span_rule": "answer-tokens@1",
        "finish": "stop",
    }
    return Generation.model_validate({**row, **changes})


GRID = tuple(np.random.default_rng(0).dirichlet(np.ones(101)).tolist())


@pytest.mark.parametrize(
    ("readout", "given"),
    [
        ("geometric_mean", {"logprobs": [-0.5, -0.25]}),
        ("geometric_mean", {"logprobs": [-0.5, -0.25, -3.0, -0.01], "span": [0, 1]}),
        ("geometric_mean", {"logprobs": np.array([-0.5, -0.25])}),
        ("joint", {"logprobs": [-0.5, -0.25, -3.0, -0.01], "span": (0, 1)}),
        ("geometric_mean_all", {"logprobs": [-0.5, -0.25, -3.0, -0.01]}),
        ("stated_greedy", {"stated": 0.83}),
        ("stated_greedy", {"stated": np.float32(0.83)}),
        ("stated_expected", {"stated": GRID}),
    ],
)
def test_the_router_reads_what_the_evaluation_read(make, readout, given):
    policy = make(readout=readout, fit_map=fit_identity)
    found = Router(policy).decide("q", now=policy.created, **given)
    whole = generation(stated=0.83, stated_grid=GRID)
    assert found.probability == pytest.approx(read_confidence(whole, readout), rel=1e-6)


@pytest.mark.parametrize(
    ("readout", "given"),
    [
        ("geometric_mean", {"logprobs": []}),
        ("geometric_mean", {"logprobs": None}),
        ("geometric_mean", {"logprobs": [-1.0, math.nan]}),
        ("joint", {"logprobs": [-1.0], "span": []}),
        ("stated_greedy", {"stated": None}),
        ("stated_expected", {"stated": [0.0] * 101}),
        ("stated_expected", {"stated": [math.nan] * 101}),
        ("confidence", {"confidence": math.nan}),
    ],
)
def test_what_cannot_be_read_escalates(make, readout, given):
    policy = make(readout=readout)
    found = Router(policy).decide("q", now=policy.created, **given)
    assert (found.keep, found.probability, found.reason) == (False, None, "the confidence could not be read")


@pytest.mark.parametrize(
    ("readout", "given", "message"),
    [
        ("geometric_mean", {"stated": 0.9}, "needs logprobs and no other reading; got stated"),
        ("geometric_mean", {}, "needs logprobs .* got none. Give logprobs=None if it could not be read"),
        ("stated_greedy", {"stated": 0.9, "confidence": 0.9}, "got stated and confidence"),
        ("confidence", {"logprobs": [-0.1]}, "needs confidence"),
        ("confidence", {"confidence": 83}, r"must be in \[0, 1\] \(divide percentages by 100\); got 83"),
        ("confidence", {"confidence": math.inf}, "got inf"),
        ("stated_greedy", {"stated": -0.1}, r"stated must be in \[0, 1\]"),
        ("stated_greedy", {"stated": GRID}, "stated must be one number"),
        ("stated_greedy", {"stated": "0.83"}, "stated must be one number"),
        ("stated_expected", {"stated": 0.9}, "stated must be a list of numbers"),
        ("stated_expected", {"stated": [0.5, 0.5]}, "must hold 101 probabilities, of 0.00 to 1.00; got 2"),
        ("stated_expected", {"stated": [1.5] * 101}, "got 1.5"),
        ("geometric_mean", {"logprobs": [0.9, 0.8]}, "natural logarithms .* each <= 0; got 0.9"),
        ("geometric_mean", {"logprobs": -0.5}, "logprobs must be a list"),
        ("joint", {"logprobs": [-0.5], "span": [1]}, "positions among 1 logprobs; got 1"),
        ("joint", {"logprobs": [-0.5], "span": [-1]}, "got -1"),
        ("geometric_mean_all", {"logprobs": [-0.5], "span": [0]}, "span must be left out"),
        ("confidence", {"confidence": 0.5, "span": [0]}, "span must be left out"),
    ],
)  # fmt: skip
def test_a_reading_that_the_policy_does_not_need_is_an_error_even_when_it_escalates_anyway(
    make, readout, given, message
):
    policy = make(readout=readout)
    for now in (policy.created, policy.expires):
        with pytest.raises(DataError, match=message):
            Router(policy).decide("q", now=now, **given)


def test_a_sure_token_of_probability_zero_is_no_error(make):
    policy = make(readout="joint", fit_map=fit_identity)
    assert Router(policy).decide("q", logprobs=[-math.inf], now=policy.created).probability == 0
    assert expected(GRID) is not None


def test_another_format_is_refused_with_what_to_do(make, tmp_path):
    path = tmp_path / "router_policy.json"
    content = json.loads(make().model_dump_json())
    path.write_text(json.dumps({**content, "format": "slm-calibration/router-policy@2", "new": 1}))
    with pytest.raises(DataError, match=r"router_policy\.json must be of the format .*@1'; got .*@2'.*again"):
        Router.load(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="got None"):
        Router.load(path)
    assert content["format"] == FORMAT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "must be JSON"),
        ('{"threshold": ' + "9" * 5000 + "}", "must be JSON"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "policy.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"policy\.json.*{message}"):
        read_policy(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": math.nan}, "threshold: .*finite"),
        ({"surprise": 1}, "surprise: .*not permitted"),
        ({"fallback": "keep"}, "fallback"),
        ({"readout": "guess"}, "readout"),
        ({"map": {"kind": "spline"}}, "map"),
        (
            {"feasibility": {"is_feasible": False, "reason": "no"}},
            "an infeasible policy must have no threshold",
        ),
        ({"feasibility": {"is_feasible": True, "reason": "no"}}, "a reason if, and only if"),
        ({"certificate": None}, "a certificate if, and only if"),
        ({"rule": {"kind": "cost"}}, "a certificate if, and only if"),
        ({"expires": "2026-11-24T10:00:00Z"}, "must expire after it was created"),
        ({"created": "2026-11-24T10:00:00"}, "created: .*timezone"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused_by_name(make, tmp_path, changes, message):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**json.loads(make().model_dump_json()), **changes}))
    with pytest.raises(DataError, match=rf"policy\.json: .*{message}"):
        read_policy(path)


def test_a_policy_cannot_be_changed_in_place(make):
    with pytest.raises(ValidationError, match="frozen"):
        make().threshold = 0.0


def test_embedding_the_router_loads_nothing_heavy():
    heavy = ("pandas", "torch", "transformers", "matplotlib", "prefect", "scipy.stats", "sklearn", "jinja2")
    script = f"import sys, calibration.routing.policy; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def stale(path, **changes):
    settings = {
        "policy": file_sha256(path),
        "since": datetime(2026, 12, 1, tzinfo=UTC),
        "reason": "the map no longer fits",
        "found_by": "small-2",
    }
    return Staleness(**{**settings, **changes})


def test_a_stale_policy_escalates_everything_and_says_why_until_another_takes_its_place(make, tmp_path):
    path, now = tmp_path / "router_policy.json", datetime(2026, 12, 2, tzinfo=UTC)
    make().write(path)
    assert Router.load(path).decide("q", confidence=1.0, now=now).keep
    stale(path).write(path)
    decision = Router.load(path).decide("q", confidence=1.0, now=now)
    assert not decision.keep
    assert decision.reason == "the policy is stale since 2026-12-01: the map no longer fits"
    make(lifetime=timedelta(days=30)).write(path)  # another policy: not the one that is meant
    assert Router.load(path).decide("q", confidence=1.0, now=now).keep


def test_a_note_on_a_policy_that_cannot_be_read_is_an_error_and_never_ignored(make, tmp_path):
    path = tmp_path / "router_policy.json"
    make().write(path)
    (tmp_path / "router_policy.stale.json").write_text("{")
    with pytest.raises(DataError, match=r"router_policy\.stale\.json must be JSON"):
        Router.load(path)
