"""How well confidence puts right answers before wrong ones; no increasing map changes these."""

import numpy as np

from calibration.metrics.outcomes import FloatArray, Outcomes


def auroc(o: Outcomes) -> FloatArray:
    """Probability that a right answer has a higher confidence than a wrong one; a tie counts half.

    Args:
        o: Graded answers.

    Returns:
        In [0, 1]; random confidence scores .5, perfect ranking 1. nan when all answers are right or all
        are wrong: there is no pair to compare.

    Source: Mann and Whitney 1947.

    >>> from calibration.metrics.outcomes import tally
    >>> float(auroc(tally([0.2, 0.6, 0.6], [0, 0, 1])))  # one pair won, one tied
    0.75
    """
    wrong = o.count - o.right
    below = np.cumsum(wrong, axis=-1) - wrong / 2
    pairs = o.right.sum(axis=-1) * wrong.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((o.right * below).sum(axis=-1) / pairs)


def aurc(o: Outcomes) -> FloatArray:
    """Mean error rate among the k most confident answers, over k = 1 ... n.

    Among equal confidences the order is undefined; the exact mean over all their orders is returned. A
    tie of m answers with w wrong, behind N answers with W wrong, has on average W + j w / m wrong among
    the first N + j, and the sum over j of (W + j w / m) / (N + j) is
    (W - N w / m)(H(N + m) - H(N)) + w, with H the harmonic numbers.

    Args:
        o: Graded answers.

    Returns:
        In [0, 1], lower is better. Random confidence scores 1 - accuracy.

    Source: Geifman et al. 2019, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", with
    ties averaged.

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(aurc(tally([0.9, 0.5, 0.1], [1, 0, 1]))), 4)  # (0 + 1/2 + 1/3) / 3
    0.2778
    """
    count, wrong = o.count[..., ::-1], (o.count - o.right)[..., ::-1]
    answers, errors = np.cumsum(count, axis=-1), np.cumsum(wrong, axis=-1)
    harmonic = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, int(np.max(o.n)) + 1))))
    before = answers - count
    rate = wrong / np.maximum(count, 1)  # a level without answers has no errors either
    total = (errors - wrong - before * rate) * (harmonic[answers] - harmonic[before]) + wrong
    return np.asarray(total.sum(axis=-1) / o.n)
