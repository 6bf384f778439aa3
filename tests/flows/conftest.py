import pytest

from tests.serving import harness


@pytest.fixture(scope="session", autouse=True)
def server(tmp_path_factory):
    """One temporary Prefect server for all tests of flows."""
    with harness(tmp_path_factory.mktemp("prefect")):
        yield
