import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="session", autouse=True)
def server():
    """One temporary Prefect server for all tests of flows."""
    with prefect_test_harness(server_startup_timeout=120):
        yield
