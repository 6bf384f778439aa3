"""A Prefect server of another release, installed beside ours and started for real."""

import subprocess
import venv

import pytest

from calibration.runs import Run
from tests.deployments.conftest import recorded_answers
from tests.serving import RECORDED, Server

pytestmark = pytest.mark.slow


class Older(Server):
    """Prefect's own server, of the release that is installed in a folder."""

    password = ""

    def command(self):
        python = self.environment["OLDER_PREFECT"]
        return [python, "-m", "prefect", "server", "start", "--port", str(self.port)]

    def is_ready(self):
        return self.answers() and self.call("/health") is True


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """The interpreter of an environment with a Prefect of the minor release before ours."""
    folder = tmp_path_factory.mktemp("older")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = ["prefect>=3.7,<3.8", "fastapi<0.137", "sqlalchemy[asyncio]<2.1"]
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs a package index: {done.stderr.splitlines()[-1]}")
    return str(python)


def test_a_run_is_shown_by_a_server_of_the_minor_release_before(older, tmp_path):
    recorded_answers().to_csv(tmp_path / "answers.csv", index=False)
    (tmp_path / "recorded.toml").write_text(RECORDED)
    server = Older(tmp_path, OLDER_PREFECT=older)
    try:
        assert server.call("/admin/version").startswith("3.7.")
        done = server.run("run", "recorded.toml")
        assert done.returncode == 0, done.stderr
        assert Run.find(tmp_path / "runs", "latest").state() == "Completed"
        [flow_run] = server.call("/flow_runs/filter", {})
        assert flow_run["state"]["name"] == "Completed"
        assert "Traceback" not in done.stderr
    finally:
        server.stop()
