"""Make metrics.json: small data sets and what other libraries say of them.

Run it where the libraries are (their versions end up in the file), not where this project is installed:
uncertainty-calibration and this project both call their package `calibration`.

    pip install torch==2.13.0
    pip install scikit-learn torchmetrics netcal relplot uncertainty-calibration mapie model-diagnostics
    python tests/golden/make_metrics.py

Values are kept as the libraries give them, the wrong ones too: tests/metrics/test_golden.py says which.
"""

import json
import warnings
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np

LIBRARIES = (
    "numpy",
    "scikit-learn",
    "torchmetrics",
    "netcal",
    "relplot",
    "uncertainty-calibration",
    "mapie",
    "model-diagnostics",
)
NORMS = {"1": "l1", "2": "l2", "infty": "max"}
BIN_SIZES = (1, 10, 50, 100)
WIDTHS = (10, 15)


def datasets():
    """Name to (confidences, marks)."""
    rng = np.random.default_rng(20250109)

    def graded(confidence, probability=None):
        chance = confidence if probability is None else probability
        return confidence, (rng.random(confidence.size) < chance).astype(int)

    def untied(confidence):
        confidence = np.round(confidence, 8)
        assert np.unique(confidence).size == confidence.size
        return confidence

    uniform, sure, shy = (untied(draw) for draw in (rng.random(500), rng.beta(4, 2, 830), rng.random(505)))
    low, dropped = untied(rng.beta(1.2, 5, 1000)), untied(rng.uniform(0, 0.9, 900))
    tenths, hundredths = np.round(rng.beta(3, 1.5, 600), 1), np.round(rng.random(300), 2)
    inner, ends = untied(rng.uniform(0.5, 0.999, 100)), (rng.random(150) < 0.7).astype(float)
    return {
        "one": (np.array([0.7]), np.array([1])),
        "three": (np.array([0.2, 0.6, 0.9]), np.array([0, 1, 1])),
        "99": graded(untied(rng.random(99))),
        "199": graded(untied(rng.random(199))),
        "250 certain and wrong": (np.ones(250), np.zeros(250, int)),
        "calibrated": graded(uniform),
        "overconfident": graded(sure, sure**3),
        "underconfident": graded(shy, np.sqrt(shy)),
        "base rate .19": graded(low),
        "last bin wrong": tuple(
            np.append(old, new)
            for old, new in zip(
                graded(dropped), (0.99 + np.arange(100) / 1e5, np.zeros(100, int)), strict=True
            )
        ),
        "one decimal": graded(tenths),
        "two decimals": graded(hundredths, hundredths**2),
        "constant": graded(np.full(430, 0.19)),
        # Half the certain answers are wrong; the confident but not certain ones are better than they say.
        "60 % at 0 or 1": graded(np.append(inner, ends), np.append(np.full(100, 0.97), np.full(150, 0.5))),
    }


def published(confidence, correct, norm, bin_size):
    """calib_err of hendrycks/outlier-exposure@e6ede98, with a stable sort; the name of what it raises."""
    order = np.argsort(confidence, kind="stable")
    confidence, correct = confidence[order], correct[order]
    bins = [[i * bin_size, (i + 1) * bin_size] for i in range(len(confidence) // bin_size)]
    if not bins:
        return "IndexError"  # of bins[-1]
    bins[-1][1] = len(confidence)
    return _loop(confidence, correct, norm, bins[:-1])  # range(len(bins) - 1)


def all_bins(confidence, correct, norm, bin_size):
    """The same with the last bin counted, and with the mean mark of its tie for each answer."""
    shared = np.array([correct[confidence == value].mean() for value in confidence])
    order = np.argsort(confidence, kind="stable")
    bins = [[i * bin_size, (i + 1) * bin_size] for i in range(max(1, len(confidence) // bin_size))]
    bins[-1][1] = len(confidence)
    return _loop(confidence[order], shared[order], norm, bins)


def _loop(confidence, correct, norm, bins):
    error = 0.0
    for first, end in bins:
        gap = np.abs(np.nanmean(confidence[first:end]) - np.nanmean(correct[first:end]))
        weight = (end - first) / len(confidence)
        if norm == "infty":
            error = max(error, gap)
        else:
            error += weight * (gap**2 if norm == "2" else gap)
    return float(np.sqrt(error) if norm == "2" else error)


def equal_mass(confidence, correct):
    """The published function as it is, repaired, and on the same rows in two other orders."""
    rows = [
        [norm, bin_size, function(confidence, correct, norm, bin_size)]
        for function in (published, all_bins)
        for norm, bin_size in product(NORMS, BIN_SIZES)
    ]
    half = len(rows) // 2
    found = {"hle": rows[:half], "all_bins": rows[half:]}
    if len(confidence) >= 200 and np.unique(confidence).size < len(confidence):
        for name, order in {"wrong_first": np.argsort(correct), "right_first": np.argsort(-correct)}.items():
            found[f"hle_{name}"] = published(confidence[order], correct[order], "2", 100)
    return found


def equal_width(confidence, correct):
    """Expected calibration errors, as far as the libraries compute them."""
    import torch
    from mapie.metrics.calibration import expected_calibration_error
    from netcal.metrics import ECE
    from sklearn.calibration import calibration_curve
    from torchmetrics.functional.classification import binary_calibration_error

    import calibration as uncertainty_calibration

    def by_curve(bins):
        right, mean = calibration_curve(correct, confidence, n_bins=bins)
        count = np.bincount(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence))
        return float(np.abs(right - mean) @ count[count > 0] / len(confidence))

    tensors = torch.tensor(confidence), torch.tensor(correct)
    return {
        "scikit-learn": {bins: by_curve(bins) for bins in WIDTHS},
        "netcal": {bins: float(ECE(bins).measure(confidence, correct)) for bins in WIDTHS},
        "uncertainty-calibration": {
            bins: float(uncertainty_calibration.get_ece(confidence, correct, num_bins=bins))
            for bins in WIDTHS
        },
        "mapie": {
            bins: float(expected_calibration_error(correct, confidence, num_bins=bins)) for bins in WIDTHS
        },
        **{
            f"torchmetrics {norm}": {
                bins: float(binary_calibration_error(*tensors, n_bins=bins, norm=norm)) for bins in WIDTHS
            }
            for norm in NORMS.values()
        },
    }


def debiased(confidence, correct):
    """Square of the debiased error by bin size, where the library makes the same bins."""
    from calibration import utils  # of uncertainty-calibration

    n = len(confidence)
    if np.unique(confidence).size < n:
        return {}
    squares = {}
    for bin_size in (size for size in BIN_SIZES[1:] if n % size == 0):
        bins = utils.get_equal_bins(list(confidence), n // bin_size)
        binned = utils.bin(list(zip(confidence, correct, strict=True)), bins)
        squares[bin_size] = float(utils.unbiased_square_ce(binned))
    return squares


def single_answers(confidence, correct):
    """Scores and ranking, for data with both marks."""
    from mapie.metrics.uncertainty import auarc
    from model_diagnostics.scoring import SquaredError, decompose
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    parts = decompose(correct, confidence, scoring_function=SquaredError()).to_dicts()[0]
    found = {
        "brier": float(brier_score_loss(correct, confidence)),
        "log_loss": float(log_loss(correct, confidence)),
        "auroc": float(roc_auc_score(correct, confidence)),
        "average_precision": float(average_precision_score(correct, confidence)),
        "brier_parts": {name: parts[name] for name in ("miscalibration", "discrimination", "uncertainty")},
    }
    if np.unique(confidence).size == len(confidence):  # it lets the order of the rows decide inside ties
        found["auarc"] = float(auarc(correct, confidence))
    return found


def reference(confidence, correct):
    """All there is to say of one data set."""
    from relplot.metrics import smECE, smECE_sigma

    found = {"confidence": confidence.tolist(), "correct": "".join(map(str, correct))}
    found |= equal_mass(confidence, correct)
    if len(confidence) > 1:
        found["ece"] = equal_width(confidence, correct)
        found["debiased_square"] = debiased(confidence, correct)
        found["smooth"] = float(smECE(confidence, correct.astype(float)))
        found["smooth_at_.05"] = float(smECE_sigma(confidence, correct.astype(float), 0.05))
    if 0 < correct.mean() < 1:
        found |= single_answers(confidence, correct)
    return found


def main():
    """Write the file beside this one, one data set a line."""
    warnings.simplefilter("ignore")  # theirs
    lines = [f'"versions": {json.dumps({name: version(name) for name in LIBRARIES})}']
    lines += [f"{json.dumps(name)}: {json.dumps(reference(*data))}" for name, data in datasets().items()]
    text = "{\n" + lines[0] + ',\n"datasets": {\n' + ",\n".join(lines[1:]) + "\n}}\n"
    Path(__file__).with_name("metrics.json").write_text(text)


if __name__ == "__main__":
    main()
