"""Metrics in float64: what is unknown goes first, the rest is summed as the definition stands; NaN is passed on."""

import itertools

import numpy as np
from scipy import integrate, special, stats
from sklearn.metrics import average_precision_score, roc_auc_score


def model_average(logits):
    """``[S, N, …, C]`` logits to the logarithm of the mean of their softmax ``[N, …, C]``."""
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    with np.errstate(divide="ignore"):
        return np.log((weights / weights.sum(-1, keepdims=True)).mean(0))


# Classes: of log-probabilities ``[N, …, C]`` and targets ``[N, …]``


def _known(log_probs, targets):
    """Probabilities, targets and predicted classes (−1 where there is a NaN) of the examples that are known."""
    log_probs, targets = np.asarray(log_probs, np.float64), np.ravel(targets)
    probs = np.exp(log_probs).reshape(-1, log_probs.shape[-1])[targets >= 0]
    predicted = np.where(np.isnan(probs).any(1), -1, probs.argmax(1))
    return probs, targets[targets >= 0], predicted


def accuracy(log_probs, targets, k=1):
    probs, targets, predicted = _known(log_probs, targets)
    best = np.argsort(-probs, axis=1, kind="stable")[:, :k]
    return np.mean((best == targets[:, None]).any(1) & (predicted >= 0))


def nll(log_probs, targets):
    probs, targets, _ = _known(log_probs, targets)
    with np.errstate(divide="ignore"):
        return np.mean([-np.log(p[y]) if y < len(p) else np.nan for p, y in zip(probs, targets, strict=True)])


def brier(log_probs, targets):
    probs, targets, _ = _known(log_probs, targets)
    return np.mean(np.sum((probs - (targets[:, None] == np.arange(probs.shape[1]))) ** 2, axis=1))


def confusion_matrix(log_probs, targets):
    probs, targets, predicted = _known(log_probs, targets)
    classes = range(probs.shape[1])
    return np.array([[np.sum((targets == c) & (predicted == d)) for d in classes] for c in classes])


def _counts(log_probs, targets):
    probs, targets, predicted = _known(log_probs, targets)
    pairs = [(targets == c, predicted == c) for c in range(probs.shape[1])]
    return np.array([[np.sum(a & b), np.sum(b), np.sum(a)] for a, b in pairs]).T


def precision(log_probs, targets):
    hits, predicted, _ = _counts(log_probs, targets)
    return hits / np.maximum(predicted, 1)


def recall(log_probs, targets):
    hits, _, there = _counts(log_probs, targets)
    return hits / np.maximum(there, 1)


def f1(log_probs, targets):
    hits, predicted, there = _counts(log_probs, targets)
    return 2 * hits / np.maximum(predicted + there, 1)


def _binned(confidence, num_bins):
    return np.minimum(np.floor(np.nan_to_num(confidence) * num_bins), num_bins - 1)


def _calibration_error(confidence, hits, num_bins):
    bins = _binned(confidence, num_bins)
    gaps = [abs(np.sum((hits - confidence)[bins == b])) for b in range(num_bins)]
    return np.sum(gaps) / len(hits) if len(hits) else np.nan


def ece(log_probs, targets, num_bins=15):
    probs, targets, predicted = _known(log_probs, targets)
    return _calibration_error(probs.max(1), predicted == targets, num_bins)


def reliability(log_probs, targets, num_bins=15):
    probs, targets, predicted = _known(log_probs, targets)
    bins = _binned(probs.max(1), num_bins)
    inside = [bins == b for b in range(num_bins)]

    def means(values):
        return np.array([values[rows].mean() if rows.any() else np.nan for rows in inside])

    return np.array([rows.sum() for rows in inside]), means(probs.max(1)), means(predicted == targets)


def ece_per_class(log_probs, targets, num_bins=15):
    probs, targets, predicted = _known(log_probs, targets)
    of_class = [targets == c for c in range(probs.shape[1])]
    return np.array([_calibration_error(probs.max(1)[c], (predicted == targets)[c], num_bins) for c in of_class])


def classwise_ece(log_probs, targets, num_bins=15):
    probs, targets, _ = _known(log_probs, targets)
    return np.array([_calibration_error(probs[:, c], targets == c, num_bins) for c in range(probs.shape[1])])


def adaptive_ece(log_probs, targets, num_bins=15):
    """Bin ``b`` of ``B`` takes the ranks up to ``⌊b N / B⌋``; equal confidences share their accuracy."""
    probs, targets, predicted = _known(log_probs, targets)
    if np.isnan(probs).any():
        return np.nan
    cases = sorted(zip(probs.max(1), predicted == targets, strict=True))
    gaps = [np.mean([hit for other, hit in cases if other == c]) - c for c, _ in cases]
    ends = [b * len(cases) // num_bins for b in range(num_bins + 1)]
    return sum(abs(sum(gaps[start:end])) for start, end in itertools.pairwise(ends)) / len(cases)


def _by_class(metric, log_probs, targets, alone):
    probs, targets, _ = _known(log_probs, targets)
    cases = [(targets == c, probs[:, c]) for c in range(probs.shape[1])]
    defined = [hits.any() and (alone or not hits.all()) and not np.isnan(scores).any() for hits, scores in cases]
    return np.array([metric(*case) if there else np.nan for case, there in zip(cases, defined, strict=True)])


def auroc(log_probs, targets):
    return _by_class(roc_auc_score, log_probs, targets, alone=False)


def average_precision(log_probs, targets):
    return _by_class(average_precision_score, log_probs, targets, alone=True)


def entropy_histogram(log_probs, targets):
    probs, _, _ = _known(log_probs, targets)
    share = stats.entropy(probs[~np.isnan(probs).any(1)], axis=1) / np.log(probs.shape[1])
    return np.histogram(share, 20, (0, 1))[0]


# Values: of predictions ``[N, …]`` and targets of that shape, or one fewer axis of length 1; NaN is unknown


def _errors(predicted, targets):
    predicted, targets = np.ravel(np.float64(predicted)), np.ravel(np.float64(targets))
    return (targets - predicted)[~np.isnan(targets)]


def rmse(predicted, targets):
    return np.sqrt(np.mean(_errors(predicted, targets) ** 2))


def mae(predicted, targets):
    return np.mean(np.abs(_errors(predicted, targets)))


def pinball(predicted, targets, levels):
    errors = [_errors(quantile, targets) for quantile in predicted]
    return np.array(
        [np.mean(np.where(e > 0, level * e, (level - 1) * e)) for e, level in zip(errors, levels, strict=True)]
    )


def coverage(lower, upper, targets):
    above, below = _errors(lower, targets), -_errors(upper, targets)
    return np.mean(np.where(np.isnan(above + below), np.nan, (above >= 0) & (below >= 0)))


def crps(draws, targets, fair=False):
    """Over all pairs of ``[S, N, …]`` draws."""
    draws = np.float64(draws).reshape(len(draws), -1)[:, ~np.isnan(np.ravel(targets))]
    targets = np.ravel(targets)[~np.isnan(np.ravel(targets))]
    pairs = np.abs(draws[:, None] - draws[None]).sum((0, 1)) / len(draws)
    weight = 2 * (len(draws) - 1 if fair else len(draws))
    return np.mean(np.abs(draws - targets).mean(0) - pairs / weight) if weight else np.nan


def gaussian_nll(mean, variance, targets):
    errors, variance = _errors(mean, targets), np.ravel(np.float64(variance))[~np.isnan(np.ravel(targets))]
    return np.mean(0.5 * np.log(2 * np.pi * variance) + errors**2 / (2 * variance))


def gaussian_crps(mean, variance, targets):
    """By adaptive quadrature of ``∫ (F(x) − [x ≥ y])² dx``, with the mean at 0."""
    errors, variance = _errors(mean, targets), np.ravel(np.float64(variance))[~np.isnan(np.ravel(targets))]

    def one(error, sigma):
        if sigma == 0 or np.isnan(error * sigma):
            return abs(error) + sigma
        low, high = min(error, 0) - 12 * sigma, max(error, 0) + 12 * sigma
        below = integrate.quad(lambda x: special.ndtr(x / sigma) ** 2, low, error)[0]
        return below + integrate.quad(lambda x: special.ndtr(-x / sigma) ** 2, error, high)[0]

    return np.mean([one(*case) for case in zip(errors, np.sqrt(variance), strict=True)])


# Sets: of outputs ``[S, N, …]`` and targets


def classification(logits, targets, num_bins):
    """Of a set with everything."""
    log_p = model_average(logits)
    _, predicted, there = _counts(log_p, targets)
    occurring = predicted + there > 0
    with np.errstate(invalid="ignore"):
        accuracy_per_class = recall(log_p, targets) / (there > 0)

    def macro(values):
        return np.nan if np.isnan(values).all() else np.nanmean(values)

    count, confidence, share = reliability(log_p, targets, num_bins)
    return {
        "accuracy": accuracy(log_p, targets),
        "top_2_accuracy": accuracy(log_p, targets, 2),
        "top_3_accuracy": accuracy(log_p, targets, 3),
        "nll": nll(log_p, targets),
        "brier": brier(log_p, targets),
        "ece": ece(log_p, targets, num_bins),
        "reliability_num_examples": count,
        "reliability_confidence": confidence,
        "reliability_accuracy": share,
        "entropy_histogram": entropy_histogram(log_p, targets),
        "accuracy_per_class": accuracy_per_class,
        "precision": precision(log_p, targets)[occurring].mean(),
        "recall": recall(log_p, targets)[occurring].mean(),
        "f1": f1(log_p, targets)[occurring].mean(),
        "confusion_matrix": confusion_matrix(log_p, targets),
        "auroc": macro(auroc(log_p, targets)),
        "average_precision": macro(average_precision(log_p, targets)),
        "adaptive_ece": adaptive_ece(log_p, targets, num_bins),
        "classwise_ece": macro(classwise_ece(log_p, targets, num_bins)),
        "ece_per_class": ece_per_class(log_p, targets, num_bins),
    }


def regression(outputs, targets, levels):
    """Likewise."""
    outputs = np.float64(outputs)
    moments, quantiles = (outputs.mean(0), outputs.var(0)), np.quantile(outputs, levels, axis=0)
    return {
        "rmse": rmse(moments[0], targets),
        "mae": mae(moments[0], targets),
        "nll": gaussian_nll(*moments, targets),
        "crps": gaussian_crps(*moments, targets),
        "crps_draws": crps(outputs, targets),
        "crps_fair": crps(outputs, targets, fair=True),
        "pinball": pinball(quantiles, targets, levels),
        "coverage": coverage(quantiles[1], quantiles[0], targets),
    }
