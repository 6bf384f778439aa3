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
    right = o.right.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(_pairs_won(o) / (right * (o.n - right)))


def average_precision(o: Outcomes) -> FloatArray:
    """Mean precision at the thresholds where right answers come in, weighted by how many come in.

    The precision at a threshold is the accuracy of all answers at least that confident; equal
    confidences share one threshold. The area under the precision-recall curve, without interpolation.

    Args:
        o: Graded answers.

    Returns:
        In [0, 1], higher is better. A constant scores the accuracy, random confidence about that, perfect
        ranking 1. nan when no answer is right.

    Source: scikit-learn's average_precision_score, which calls no right answer 0 (and warns).

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(average_precision(tally([0.9, 0.5, 0.1], [1, 0, 1]))), 4)  # (1 + 2/3) / 2
    0.8333
    """
    count, right = o.count[..., ::-1], o.right[..., ::-1]
    answers = np.maximum(np.cumsum(count, axis=-1), 1)  # the first levels of a row may be empty
    precision = np.cumsum(right, axis=-1) / answers
    with np.errstate(invalid="ignore"):
        return np.asarray((right * precision).sum(axis=-1) / right.sum(axis=-1))


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


def excess_aurc(o: Outcomes) -> FloatArray:
    """AURC beyond what the errors themselves cost: AURC minus that of a perfect ranking of these answers.

    With all R right answers before all n - R wrong ones, the AURC is (n - R - R(H(n) - H(R))) / n, with H
    the harmonic numbers: a system that errs has a positive AURC whatever its confidence.

    Args:
        o: Graded answers.

    Returns:
        At least 0 (but for rounding), lower is better. Perfect ranking scores 0, random confidence
        a(H(n) - H(an)) for an accuracy of a, which is about -a ln a. Without right answers or without
        wrong ones it is 0.

    Source: Geifman et al. 2019 (E-AURC), who approximate the perfect ranking's AURC by e + (1 - e)
    ln(1 - e) for an error rate of e; here it is exact, with ties averaged.

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(excess_aurc(tally([0.9, 0.5, 0.1], [1, 0, 1]))), 4)  # (0 + 1/2 + 1/3) / 3 - (1/3) / 3
    0.1667
    """
    return np.asarray(aurc(o) - aurc(_oracle(o)))


def augrc(o: Outcomes) -> FloatArray:
    """Mean share of all answers that are wrong and yet kept, over every share of answers kept.

    Unlike `aurc`, which divides the errors kept by the answers kept, it divides by all answers: the most
    confident few do not outweigh the rest. With a the accuracy it is
    (1 - AUROC) a(1 - a) + (1 - a)**2 / 2: what a perfect ranking would avoid, and what none can.

    Args:
        o: Graded answers.

    Returns:
        In [0, .5], lower is better. Random confidence scores (1 - a) / 2, perfect ranking (1 - a)**2 / 2.

    Source: Traub et al. 2024, "Overcoming Common Flaws in the Evaluation of Selective Classification
    Systems". Straight lines join the points of the curve, which is also the mean over the orders of a tie.

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(augrc(tally([0.9, 0.5, 0.1], [1, 0, 1]))), 4)  # (0 + 1/6 + 1/3) / 3
    0.1667
    """
    right, n = o.right.sum(axis=-1), o.n
    wrong = n - right
    return np.asarray((right * wrong - _pairs_won(o) + wrong**2 / 2) / n**2)


def rejection_ratio(o: Outcomes) -> FloatArray:
    """Share of the way from random to perfect rejection: the prediction rejection ratio (PRR).

    The curve is the error rate of the answers kept, over the share rejected, the least confident first:
    0, 1/n, ..., 1 - 1/n. The area under it is the AURC; random rejection keeps the error rate e, and
    PRR = (e - AURC) / (e - AURC of a perfect ranking), whose denominator is a(H(n) - H(an)) for an
    accuracy of a = 1 - e. Accuracy instead of error gives the same ratio.

    Args:
        o: Graded answers.

    Returns:
        At most 1; random confidence scores 0, perfect ranking 1, worse than random is negative (below -1
        too). nan when all answers are right or all are wrong: rejection changes nothing.

    Source: LM-Polygraph 0.7 (Vashurin et al. 2025) at max_rejection = 1, with ties averaged and the random
    curve exact instead of a mean over shuffles. The older form of Malinin and Gales
    (KaosEngineer/PriorNetworks@191abae) lets an oracle answer what is rejected and divides the errors by
    all answers; with marks of 0 and 1 that ratio is 2 AUROC - 1.

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(rejection_ratio(tally([0.9, 0.5, 0.1], [1, 0, 1]))), 4)  # (6 - 5) / (6 - 2), in 18ths
    0.25
    """
    error = (o.n - o.right.sum(axis=-1)) / o.n
    with np.errstate(invalid="ignore"):  # marks of one kind: exactly 0 / 0
        return np.asarray((error - aurc(o)) / (error - aurc(_oracle(o))))


def _pairs_won(o: Outcomes) -> FloatArray:
    """Pairs of a right and a wrong answer in which the right one is more confident; a tie counts half."""
    wrong = o.count - o.right
    below = np.cumsum(wrong, axis=-1) - wrong / 2
    return np.asarray((o.right * below).sum(axis=-1))


def _oracle(o: Outcomes) -> Outcomes:
    """These marks under perfect knowledge: every wrong answer at 0, every right one at 1."""
    right = o.right.sum(axis=-1)
    count = np.stack([o.n - right, right], axis=-1)
    return Outcomes(np.array([0.0, 1.0]), count, count * [0, 1])
