# ruff: noqa: E402 - one of the imports must come before the others
"""How fast the metrics are beside the libraries that compute the same, and which goals that meets.

Every ratio is time of the reference / time of ours, taken in the same round, one call after the other, so
that a busy machine slows both. The table gives the median over the rounds and the 10 % and 90 % quantiles.
A reference that is not installed is named and left out of the sums, which makes them smaller.

    make benchmark
"""

import importlib.util
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

ROOT = Path(__file__).resolve().parent.parent


def _other_calibration() -> ModuleType | None:
    """uncertainty-calibration, which calls its package as this project calls its own."""
    paths = sys.path[:]
    sys.path[:] = [path for path in paths if Path(path).resolve() != ROOT]
    try:
        return importlib.import_module("calibration.utils")
    except ModuleNotFoundError:
        return None
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "calibration"]:
            del sys.modules[name]
        sys.path[:] = [str(ROOT), *paths]


UNCERTAINTY_CALIBRATION = _other_calibration()

import numpy as np

from calibration.metrics.errors import (
    calibration_error,
    calibration_floor,
    hle_calibration_error,
    width_error,
)
from calibration.metrics.inference import Graded, Metric, compare_all
from calibration.metrics.outcomes import FloatArray, IntArray, Outcomes, tally
from calibration.metrics.ranking import aurc, auroc, average_precision
from calibration.metrics.scores import brier, log_loss
from calibration.metrics.smooth import smooth_error

ROUNDS = {1_000: 61, 10_000: 31, 100_000: 21, 1_000_000: 11}
"""Rounds by number of answers."""
BIN_SIZE, BINS = 100, 15
RESAMPLES, LOOPS = 400, 20
"""Resamples of ours and of the reference's loop in one round; what is compared is the time of one."""
IMPORT_ROUNDS = 21
LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-learn",
    "torch",
    "torchmetrics",
    "relplot",
    "uncertainty-calibration",
    "mapie",
)

OURS: Mapping[str, Callable[[Outcomes], object]] = {
    "RMS": calibration_error,
    "L1": lambda o: calibration_error(o, norm=1),
    "RMS, debiased": lambda o: calibration_error(o, debias=True),
    "RMS floor": calibration_floor,
    "ECE": lambda o: width_error(o, bins=BINS),
    "MCE": lambda o: width_error(o, norm="max", bins=BINS),
    "smooth ECE": smooth_error,
    "Brier": brier,
    "log loss": log_loss,
    "AUROC": auroc,
    "average precision": average_precision,
    "AURC": aurc,
}
"""The twelve figures of the report that is timed."""

Reference: TypeAlias = Callable[[FloatArray, IntArray], object]


def calib_err(confidence: FloatArray, correct: IntArray, p: str = "2", beta: int = 100) -> float:
    """The function published with HLE (hendrycks/outlier-exposure@e6ede98), step by step."""
    idxs = np.argsort(confidence)
    confidence, correct = confidence[idxs], correct[idxs]
    bins = [[i * beta, (i + 1) * beta] for i in range(len(confidence) // beta)]
    bins[-1] = [bins[-1][0], len(confidence)]
    cerr = 0.0
    for start, end in bins[:-1]:
        bin_confidence, bin_correct = confidence[start:end], correct[start:end]
        difference = np.abs(np.nanmean(bin_confidence) - np.nanmean(bin_correct))
        weight = len(bin_confidence) / len(confidence)
        cerr += weight * (difference**2 if p == "2" else difference)
    return float(np.sqrt(cerr) if p == "2" else cerr)


def references() -> tuple[dict[str, tuple[str, Reference]], list[str]]:
    """Figure to (whose function, function), and the references that are not installed."""
    found: dict[str, tuple[str, Reference]] = {
        "RMS": ("HLE calib_err", calib_err),
        "L1": ("HLE calib_err", lambda c, y: calib_err(c, y, p="1")),
    }
    missing = []
    adders = {"scikit-learn": _sklearn, "torchmetrics": _torchmetrics, "relplot": _relplot, "mapie": _mapie}
    for library, functions in adders.items():
        try:
            found |= {figure: (library, function) for figure, function in functions().items()}
        except ModuleNotFoundError as error:
            missing.append(f"{library} ({error.name} is not installed)")
    if UNCERTAINTY_CALIBRATION is None:
        missing.append("uncertainty-calibration (not installed)")
    else:
        found["RMS, debiased"] = ("uncertainty-calibration", _debiased)
    return found, missing


def _sklearn() -> dict[str, Reference]:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
    from sklearn.metrics import log_loss as log_loss_score

    def largest_gap(confidence: FloatArray, correct: IntArray) -> float:
        right, mean = calibration_curve(correct, confidence, n_bins=BINS)
        return float(np.abs(right - mean).max())

    return {
        "MCE": largest_gap,
        "AUROC": lambda c, y: roc_auc_score(y, c),
        "average precision": lambda c, y: average_precision_score(y, c),
        "log loss": lambda c, y: log_loss_score(y, c),
        "Brier": lambda c, y: brier_score_loss(y, c),
    }


def _torchmetrics() -> dict[str, Reference]:
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    return {
        "ECE": lambda c, y: binary_calibration_error(torch.from_numpy(c), torch.from_numpy(y), n_bins=BINS)
    }


def _relplot() -> dict[str, Reference]:
    from relplot.metrics import smECE

    return {"smooth ECE": lambda c, y: smECE(c, y.astype(np.float64))}


def _mapie() -> dict[str, Reference]:
    from mapie.metrics.uncertainty import auarc

    return {"AURC": lambda c, y: 1 - auarc(y, c)}


def _debiased(confidence: FloatArray, correct: IntArray) -> float:
    assert UNCERTAINTY_CALIBRATION is not None  # noqa: S101 - asked for only where it is
    bins = UNCERTAINTY_CALIBRATION.get_equal_bins(confidence.tolist(), len(confidence) // BIN_SIZE)
    pairs = list(zip(confidence.tolist(), correct.tolist(), strict=True))
    square = UNCERTAINTY_CALIBRATION.unbiased_square_ce(UNCERTAINTY_CALIBRATION.bin(pairs, bins))
    return float(np.sqrt(max(square, 0.0)))


def refuse_disagreement(theirs: Mapping[str, tuple[str, Reference]]) -> None:
    """Make sure that what is compared is the same figure, on answers without ties."""
    confidence, correct = answers(1_000, is_verbalised=False)
    o = tally(confidence, correct)
    for name, (whose, function) in theirs.items():
        if whose == "HLE calib_err":  # ours counts the last bin as well
            ours: float = hle_calibration_error(confidence, correct, norm=1 if name == "L1" else 2)
        else:
            ours = float(np.asarray(OURS[name](o)))
        other = float(np.asarray(function(confidence, correct)))
        if abs(ours - other) > (1e-3 if whose == "relplot" else 1e-6):
            raise SystemExit(f"{name} must be what {whose} says, {other}; got {ours}")


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is, over rounds."""

    median: float
    low: float
    high: float
    ours: float
    """Median milliseconds."""
    reference: float
    """Median milliseconds."""

    @classmethod
    def of(cls, ours: FloatArray, reference: FloatArray) -> "Ratio":
        """From seconds by round."""
        low, median, high = np.quantile(reference / ours, (0.1, 0.5, 0.9))
        return cls(median, low, high, *(1000 * float(np.median(times)) for times in (ours, reference)))


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, FloatArray]:
    """Seconds of each function in each round; the first, unmeasured round warms caches up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(-1, rounds):
        names = list(functions)
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:  # nobody always follows the same neighbour
            start = time.perf_counter()
            functions[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(times) for name, times in seconds.items()}


def answers(n: int, *, is_verbalised: bool) -> tuple[FloatArray, IntArray]:
    """Overconfident answers; verbalised ones state one decimal."""
    rng = np.random.default_rng(n)
    confidence = rng.beta(4, 2, n)
    correct = (rng.random(n) < confidence**3).astype(np.int64)
    return (np.round(confidence, 1) if is_verbalised else confidence), correct


@dataclass(frozen=True)
class Report:
    """What one size and kind of data took."""

    report: Ratio
    adaptive: Ratio
    smooth: Ratio | None
    milliseconds: dict[str, float]


def _report(confidence: FloatArray, correct: IntArray) -> dict[str, object]:
    o = tally(confidence, correct)
    return {name: metric(o) for name, metric in OURS.items()}


def time_report(n: int, theirs: Mapping[str, tuple[str, Reference]], *, is_verbalised: bool) -> Report:
    """The report, the adaptive error, the smooth error, and every figure by itself."""
    confidence, correct = answers(n, is_verbalised=is_verbalised)
    o = tally(confidence, correct)
    functions: dict[str, Callable[[], object]] = {
        "report": lambda: _report(confidence, correct),
        "adaptive": lambda: calibration_error(tally(confidence, correct)),
        "smooth": lambda: smooth_error(tally(confidence, correct)),
        "tally": lambda: tally(confidence, correct),
    }
    functions |= {f"ours {name}": partial(metric, o) for name, metric in OURS.items()}
    functions |= {
        f"theirs {name}": partial(function, confidence, correct) for name, (_, function) in theirs.items()
    }
    seconds = interleaved(functions, ROUNDS[n])
    summed = np.sum([seconds[f"theirs {name}"] for name in theirs], axis=0)
    return Report(
        Ratio.of(seconds["report"], summed),
        Ratio.of(seconds["adaptive"], seconds["theirs RMS"]),
        Ratio.of(seconds["smooth"], seconds["theirs smooth ECE"]) if "smooth ECE" in theirs else None,
        {name: 1000 * float(np.median(times)) for name, times in seconds.items()},
    )


def time_bootstrap(n: int, theirs: Mapping[str, tuple[str, Reference]], *, is_verbalised: bool) -> Ratio:
    """One paired resample of RMS, AUROC, AURC and Brier score."""
    ids = tuple(map(str, range(n)))
    (c1, y1), (c2, y2) = (answers(n + more, is_verbalised=is_verbalised) for more in (0, 1))
    systems = (c1, y1), (c2[:n], y2[:n])
    a, b = (Graded(ids, confidence, correct.astype(np.float64)) for confidence, correct in systems)
    metrics: dict[str, Metric] = {"RMS": calibration_error, "AUROC": auroc, "AURC": aurc, "Brier": brier}
    metrics = {name: metric for name, metric in metrics.items() if name in theirs}

    def loop() -> None:
        rng = np.random.default_rng(0)
        for _ in range(LOOPS):
            picks = rng.integers(0, n, n)
            for confidence, correct in systems:
                for name in metrics:
                    theirs[name][1](confidence[picks], correct[picks])

    functions = {"ours": lambda: compare_all(a, b, metrics, seed=0, times=RESAMPLES), "loop": loop}
    seconds = interleaved(functions, 15)
    return Ratio.of(seconds["ours"] / RESAMPLES, seconds["loop"] / LOOPS)


def time_import() -> Ratio | None:
    """All modules of `calibration.metrics` against `sklearn.metrics`, each in a fresh process."""
    modules = sorted(
        f"calibration.metrics.{path.stem}"
        for path in (ROOT / "calibration" / "metrics").glob("*.py")
        if path.stem != "__init__"
    )
    if importlib.util.find_spec("sklearn") is None:
        return None

    def fresh(statement: str) -> float:
        script = (
            f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); start = time.perf_counter(); {statement}; "
            "print(time.perf_counter() - start)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return float(done.stdout)

    seconds = np.array(
        [
            [fresh(f"import {names}") for names in (", ".join(modules), "sklearn.metrics")]
            for _ in range(IMPORT_ROUNDS + 1)
        ]
    )[1:]  # the first round reads the files from disk
    return Ratio.of(seconds[:, 0], seconds[:, 1])


def row(what: str, data: str, ratio: Ratio | None, goal: float | None = None) -> str:
    """A line of the table."""
    if ratio is None:
        return f"| {what} | {data} | | | not measured: a reference is missing | | |"
    met = "" if goal is None else f"≥ {goal:.3g} | {'met' if ratio.median >= goal else '**not met**'}"
    spread = f"{ratio.low:.1f} to {ratio.high:.1f}"
    times = f"{ratio.ours:.3g} | {ratio.reference:.3g}"
    return f"| {what} | {data} | {times} | {ratio.median:.1f} | {spread} | {met or ' | '} |"


def main() -> None:
    """Print the tables."""
    theirs, missing = references()
    refuse_disagreement(theirs)
    print(f"Python {platform.python_version()}, {', '.join(map(_versioned, LIBRARIES))}.")
    print(f"References that are missing: {', '.join(missing) or 'none'}.\n")
    print("| what | answers | ours, ms | reference, ms | ratio | q10 to q90 | goal | |")
    print("|---|---|---|---|---|---|---|---|")
    reports = {}
    for n in ROUNDS:
        for is_verbalised in (False, True):
            data = f"{n:,} {'one-decimal' if is_verbalised else 'distinct'}"
            reports[data] = found = time_report(n, theirs, is_verbalised=is_verbalised)
            print(row("report of 12 figures", data, found.report, 8 if is_verbalised else 5))
            print(row("adaptive error / HLE", data, found.adaptive, 2 if n >= 100_000 else None))
            print(row("smooth ECE / relplot", data, found.smooth, 2), flush=True)
    for is_verbalised in (False, True):
        data = f"1,000 {'one-decimal' if is_verbalised else 'distinct'}"
        ratio = time_bootstrap(1_000, theirs, is_verbalised=is_verbalised)
        print(row("one paired resample of 4 figures", data, ratio, 20), flush=True)
    print(row("import / sklearn.metrics", "", time_import(), 1 / 0.6))
    for data in ("100,000 distinct", "100,000 one-decimal"):
        _print_figures(data, reports[data].milliseconds, theirs)


def _versioned(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"{library} (none)"


def _print_figures(
    data: str, milliseconds: Mapping[str, float], theirs: Mapping[str, tuple[str, Reference]]
) -> None:
    print(f"\nWhere the time goes, {data}, ms (ours: from the tally, which is made once).\n")
    print("| figure | ours | reference | whose |\n|---|---|---|---|")
    print(f"| tally | {milliseconds['tally']:.2f} | | |")
    for name in OURS:
        whose = theirs[name][0] if name in theirs else ""
        reference = f"{milliseconds[f'theirs {name}']:.2f}" if whose else ""
        print(f"| {name} | {milliseconds[f'ours {name}']:.2f} | {reference} | {whose} |")


if __name__ == "__main__":
    main()
