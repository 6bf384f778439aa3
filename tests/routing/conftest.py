"""A world whose truth is known, and policies made in it."""

from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.special import expit

from calibration.metrics.inference import Graded
from calibration.routing.build import build_policy
from calibration.routing.goals import Certified
from calibration.routing.rules import Prices

CREATED = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def draw():
    """Draws graded answers: overconfident, AUROC .85, accuracy .6, some confidences unreadable."""

    def answers(n, seed, *, unreadable=0.0, prefix="q", slope=1.0, decimals=None):
        rng = np.random.default_rng(seed)
        correct = rng.random(n) < 0.6
        score = rng.normal(size=n) + 1.466 * correct
        confidence = expit(slope * score + 1)
        if decimals is not None:
            confidence = np.round(confidence, decimals)
        confidence[rng.random(n) < unreadable] = np.nan
        return Graded(tuple(f"{prefix}{i}" for i in range(n)), confidence, correct.astype(float))

    return answers


@pytest.fixture(scope="session")
def make(draw):
    """Makes a policy, with a test set unless told otherwise."""

    def policy(fit=None, **options):
        settings = {
            "rule": Certified(accuracy=0.8),
            "readout": "confidence",
            "prices": Prices(),
            "created": CREATED,
            "test": draw(600, 100, prefix="t"),
        }
        return build_policy(draw(1000, 0) if fit is None else fit, **{**settings, **options})

    return policy
