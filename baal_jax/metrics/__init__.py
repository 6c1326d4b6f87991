"""Metrics of the Bayesian model average: pure functions, every example weighted alike.

``log_probs`` is always the model average in probability space, as :func:`model_average` returns it. Examples with a
negative class (in regression: a NaN target) do not count; with nothing that counts, a metric is NaN.

What should not be there is never taken for an ordinary value. A prediction that is NaN predicts no class: it is wrong
for accuracy, precision, recall and F1, is in no cell of a confusion matrix and in no bin of a histogram, and makes all
other metrics NaN. A class of ``C`` or more is an example of no class, wrong for all metrics, and makes the NLL NaN.

A metric is a ``float32[]`` where nothing else is said; errors of regression are in units of the targets. Refused
with a ``ValueError`` are shapes that differ, a single class, no draws, a number of bins that is not positive, levels
outside of 0 to 1, and an average that does not exist.
"""

from baal_jax.metrics._calibration import Reliability, adaptive_ece, classwise_ece, ece, ece_per_class, reliability
from baal_jax.metrics._classification import (
    accuracy,
    auroc,
    average_precision,
    brier,
    confusion_matrix,
    f1,
    nll,
    precision,
    recall,
)
from baal_jax.metrics._joint import joint_log_likelihood
from baal_jax.metrics._regression import coverage, crps, gaussian_crps, mae, pinball, quantiles, rmse
from baal_jax.metrics._set import MetricSet, classification, gaussian_regression, model_average, multi_label, regression

__all__ = ["MetricSet", "Reliability", "accuracy", "adaptive_ece", "auroc", "average_precision", "brier",
           "classification", "classwise_ece", "confusion_matrix", "coverage", "crps", "ece", "ece_per_class", "f1",
           "gaussian_crps", "gaussian_regression", "joint_log_likelihood", "mae", "model_average", "multi_label", "nll",
           "pinball", "precision", "quantiles", "recall", "regression", "reliability", "rmse"]  # fmt: skip
