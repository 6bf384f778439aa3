import pickle

import pytest

from calibration import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_a_trip_between_processes(kind):
    there_and_back = pickle.loads(pickle.dumps(kind("what, where, and what to do")))  # noqa: S301 - our own bytes
    assert type(there_and_back) is kind
    assert str(there_and_back) == "what, where, and what to do"
    assert issubclass(kind, errors.CalibrationError)
