"""What orchestration costs: a run of which everything is cached, and the overhead of a cold one.

    python -m benchmarks.orchestration                 # the demo, cold and cached: 15 minutes or so
    python -m benchmarks.orchestration some.toml       # another experiment
    python -m benchmarks.orchestration --store DIR     # cached runs of a demo whose store is there

The runs are those of the command line, in processes of their own: against a Prefect server that runs
already, and with the temporary one that a command starts by itself. A stage's body is what its function
does, its worker process included; overhead is the wall time in which no body was at work.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

ROUNDS = 3
GOALS = {"a running server": 8.0, "no server": 30.0}
MOST_OVERHEAD = 0.10


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("experiment", nargs="?", default="pocket")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--watched", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watched:
        watched(options.experiment, options.watched)
        return
    # The watched process must not pay for the tests' libraries.
    from tests.chaos.conftest import Server

    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.experiment}, {ROUNDS} runs each")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {
            "SLM_CALIBRATION_STORE": str(options.store or folder / "store"),
            "SLM_CALIBRATION_RUNS": str(folder / "runs"),
            "PREFECT_HOME": str(folder / "home"),
        }
        server = Server(folder / "server")
        server.start()
        try:
            met = [cold(options.experiment, folder, server.url)] if options.store is None else []
            met.append(cached("a running server", options.experiment, folder, server.url))
        finally:
            server.kill()
        met.append(cached("no server", options.experiment, folder, None))
    if not all(met):
        sys.exit("a goal was missed")


def cold(experiment: str, folder: Path, url: str | None) -> bool:
    """The overhead of a run that does everything; whether it meets the goal."""
    wall, told = run(experiment, folder, url)
    bodies = told["bodies"]
    busy = union([(begin, end) for _, begin, end in bodies])
    print(f"\ncold: wall {wall:.1f} s; a body was at work in {busy:.1f} s of it", end="; ")
    print(f"the bodies' sum is {sum(end - begin for _, begin, end in bodies):.1f} s")
    overhead = (wall - busy) / wall
    print(f"overhead {wall - busy:.1f} s, {overhead:.1%} of the wall (goal: at most {MOST_OVERHEAD:.0%})")
    where_it_goes(wall, told)
    return overhead <= MOST_OVERHEAD


def cached(where: str, experiment: str, folder: Path, url: str | None) -> bool:
    """The wall time of a run that does nothing, and where it goes; whether it meets the goals."""
    run(experiment, folder, url)  # the first one fills the operating system's caches
    runs = [run(experiment, folder, url) for _ in range(ROUNDS)]
    walls = [wall for wall, _ in runs]
    middle = statistics.median(walls)
    cpu = statistics.median(told["cpu"] for _, told in runs)
    states = Counter(state for _, told in runs for state in told["states"])
    bodies = sum(len(told["bodies"]) for _, told in runs)
    print(
        f"\ncached, {where}: {middle:.1f} s, {min(walls):.1f} to {max(walls):.1f} s, CPU {cpu:.1f} s", end=" "
    )
    print(f"(goal: at most {GOALS[where]:.0f} s); {bodies} bodies; states {dict(states)}")
    where_it_goes(*sorted(runs, key=lambda run: run[0])[len(runs) // 2])
    return middle <= GOALS[where] and not bodies and set(states) == {"Cached"}


def where_it_goes(wall: float, told: dict[str, Any]) -> None:
    """Print the parts of a run's wall time."""
    parts = told["parts"]
    bodies = union([(begin, end) for _, begin, end in told["bodies"]])
    parts["the rest"] = wall - bodies - sum(parts.values())
    for name, seconds in parts.items():
        print(f"  {name:42} {seconds:6.2f} s  {seconds / wall:5.1%}")


def run(experiment: str, folder: Path, url: str | None) -> tuple[float, dict[str, Any]]:
    """One run in a process of its own: its wall time, and what it tells of itself."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    if url:
        environment["PREFECT_API_URL"] = url
    report = folder / "told.json"
    began, used = time.monotonic(), cpu_of_children()
    subprocess.run(
        [sys.executable, "-m", "benchmarks.orchestration", experiment, "--watched", str(report)],
        env={**environment, "BENCHMARK_BEGAN": str(began)},
        check=True,
        capture_output=True,
    )
    wall = time.monotonic() - began
    told = json.loads(report.read_text())
    told["parts"]["end of the process"] = began + wall - told["ended"]
    told["cpu"] = cpu_of_children() - used
    return wall, told


def cpu_of_children() -> float:
    """Seconds of processor time of all processes that were begun here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def union(spans: list[tuple[float, float]]) -> float:
    """Seconds that at least one of the spans covers."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def watched(experiment: str, report: Path) -> None:
    """The command line's `run`, with a watch on its parts; writes down what it saw."""
    parts: dict[str, float] = defaultdict(float)
    bodies: list[tuple[str, float, float]] = []
    at_work: list[float] = []
    parts["start of Python"] = time.monotonic() - float(os.environ["BENCHMARK_BEGAN"])

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever it takes
            began = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                if not at_work:  # the time of a body is a body's
                    parts[name] += time.monotonic() - began

        return inner

    began = time.monotonic()
    import prefect

    parts["import of Prefect"] = time.monotonic() - began
    began = time.monotonic()
    import tasks.stage

    class Watched(prefect.Task):  # type: ignore[type-arg]
        def __init__(self, function: Callable[..., Any], **settings: Any) -> None:  # noqa: ANN401
            @wraps(function)
            async def body(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - a stage's own
                begin = time.monotonic()
                at_work.append(begin)
                try:
                    return await function(*args, **kwargs)
                finally:
                    at_work.remove(begin)
                    bodies.append((function.__name__, begin, time.monotonic()))

            super().__init__(body, **settings)

    tasks.stage.Task = Watched  # type: ignore[misc]
    import calibration.artifacts
    import deployments.checks
    import deployments.cli
    import deployments.console
    import tasks.publish
    import tasks.record

    parts["import of the rest"] = time.monotonic() - began
    for owner, attribute, name in (
        (tasks.stage, "stage_key", "cache keys"),
        (calibration.artifacts.Store, "damage", "digests of artifacts"),
        (tasks.publish, "_rendered", "the report's page"),
        (deployments.checks, "preflight", "checks before the run"),
        *temporary_server(),
    ):
        setattr(owner, attribute, timed(name, getattr(owner, attribute)))
    began = time.monotonic()
    deployments.cli.main(["run", experiment])
    command = time.monotonic() - began
    parts["Prefect: flow, tasks, artifacts, client"] = (
        command - sum(seconds for name, seconds in parts.items() if name not in BEFORE) - busy_of(bodies)
    )
    folder = Path(os.environ["SLM_CALIBRATION_RUNS"]) / "latest"
    stages = [json.loads(line) for line in (folder / "stages.jsonl").read_text().splitlines()]
    states = [stage["state"] for stage in stages if stage["state"] != "Running"]  # how each one ended
    told = {"parts": parts, "bodies": bodies, "states": states, "ended": time.monotonic()}
    report.write_text(json.dumps(told))


def temporary_server() -> list[tuple[Any, str, str]]:
    """What to watch of the server that a command starts by itself, if it will."""
    if "PREFECT_API_URL" in os.environ:
        return []
    from deployments import server

    return [
        (server, "_wait_for", "start of the temporary server"),
        (server, "_stop", "end of the temporary server"),
    ]


BEFORE = {"start of Python", "import of Prefect", "import of the rest"}


def busy_of(bodies: list[tuple[str, float, float]]) -> float:
    """Seconds in which a body was at work."""
    return union([(begin, end) for _, begin, end in bodies])


if __name__ == "__main__":
    main()
