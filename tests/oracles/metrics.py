"""Metrics in float64: what is unknown goes first, the rest is summed as the definition stands; NaN is passed on."""

import functools
import itertools

import numpy as np
import sklearn.metrics
from scipy import stats


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
    return sklearn.metrics.confusion_matrix(targets, predicted, labels=range(probs.shape[1]))


def _score(place, log_probs, targets):
    probs, targets, predicted = _known(log_probs, targets)
    options = {"labels": range(probs.shape[1]), "zero_division": 0}
    return sklearn.metrics.precision_recall_fscore_support(targets, predicted, **options)[place]


precision, recall, f1 = (functools.partial(_score, place) for place in range(3))


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
    inside = [_binned(probs.max(1), num_bins) == b for b in range(num_bins)]
    values = probs.max(1), predicted == targets
    means = [[value[rows].mean() if rows.any() else np.nan for rows in inside] for value in values]
    return np.sum(inside, axis=1), *np.array(means)


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


def _by_class(metric, alone, log_probs, targets):
    probs, targets, _ = _known(log_probs, targets)
    cases = [(targets == c, probs[:, c]) for c in range(probs.shape[1])]
    defined = [hits.any() and (alone or not hits.all()) and not np.isnan(scores).any() for hits, scores in cases]
    return np.array([metric(*case) if there else np.nan for case, there in zip(cases, defined, strict=True)])


auroc = functools.partial(_by_class, sklearn.metrics.roc_auc_score, False)
average_precision = functools.partial(_by_class, sklearn.metrics.average_precision_score, True)


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
    pairs = [(_errors(quantile, targets), level) for quantile, level in zip(predicted, levels, strict=True)]
    return np.array([np.mean(np.where(e > 0, level * e, (level - 1) * e)) for e, level in pairs])


def coverage(lower, upper, targets):
    above, below = _errors(lower, targets), -_errors(upper, targets)
    return np.mean(np.where(np.isnan(above + below), np.nan, (above >= 0) & (below >= 0)))


def crps(draws, targets, fair=False):
    """Over all pairs of ``[S, N, …]`` draws."""
    errors = np.array([_errors(draw, targets) for draw in draws])
    pairs = np.abs(errors[:, None] - errors[None]).sum((0, 1)) / len(draws)
    weight = 2 * (len(draws) - 1 if fair else len(draws))
    return np.mean(np.abs(errors).mean(0) - pairs / weight) if weight else np.nan


def _with_deviation(mean, variance, targets):
    return _errors(mean, targets), np.sqrt(np.ravel(np.float64(variance))[~np.isnan(np.ravel(targets))])


def gaussian_nll(mean, variance, targets):
    errors, sigma = _with_deviation(mean, variance, targets)
    return -np.mean(stats.norm.logpdf(errors, scale=sigma))


def gaussian_crps(mean, variance, targets):
    """``E |x − y| − ½ E |x − x'|``: the means of a folded and of a half normal distribution."""
    errors, sigma = _with_deviation(mean, variance, targets)
    safe = np.where(sigma == 0, 1, sigma)
    distance = np.where(sigma == 0, np.abs(errors), stats.foldnorm.mean(np.abs(errors) / safe, scale=safe))
    return np.mean(distance - stats.halfnorm.mean(scale=np.sqrt(2)) * sigma / 2)


# Sets: of outputs ``[S, N, …]`` and targets


def classification(logits, targets, num_bins):
    """Of a set with everything."""
    arrays = model_average(logits), targets
    probs, known, predicted = _known(*arrays)
    there, occurring = (np.isin(range(probs.shape[1]), part) for part in (known, [*known, *predicted]))

    found = {metric.__name__: metric(*arrays) for metric in (nll, brier, entropy_histogram, confusion_matrix)}
    found |= {metric.__name__: metric(*arrays, num_bins) for metric in (ece, ece_per_class, adaptive_ece)}
    scores = {"precision": precision, "recall": recall, "f1": f1}
    found |= {name: metric(*arrays)[occurring].mean() for name, metric in scores.items()}
    rankings = {"auroc": auroc(*arrays), "average_precision": average_precision(*arrays)}
    rankings["classwise_ece"] = classwise_ece(*arrays, num_bins)
    found |= {name: np.nan if np.isnan(values).all() else np.nanmean(values) for name, values in rankings.items()}
    found["accuracy_per_class"] = np.where(there, recall(*arrays), np.nan)
    for name, k in (("accuracy", 1), ("top_2_accuracy", 2), ("top_3_accuracy", 3)):
        found[name] = accuracy(*arrays, k)
    for part, value in zip(("num_examples", "confidence", "accuracy"), reliability(*arrays, num_bins), strict=True):
        found[f"reliability_{part}"] = value
    return found


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
