"""The metrics that a loop reports, as a map over batches and a reduce over examples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.metrics import _calibration as calibration
from baal_jax.metrics import _classification as classes
from baal_jax.metrics import _ranking as ranking
from baal_jax.metrics import _regression as real
from baal_jax.metrics import _sums
from baal_jax.metrics._accumulators import Metric, Streamable, mean_metric
from baal_jax.metrics._common import MetricSet, averaged, model_average
from baal_jax.typing import Array, Predictions, PyTree

CLASSIFICATION_EXTRA = (
    "precision",
    "recall",
    "f1",
    "confusion_matrix",
    "auroc",
    "average_precision",
    "adaptive_ece",
    "classwise_ece",
    "ece_per_class",
)
REGRESSION_EXTRA = ("crps_draws", "crps_fair", "pinball", "coverage")


def classification(
    *, top_k: Sequence[int] = (), num_bins: int = 15, diagnostics: bool = False, extra: Sequence[str] = ()
) -> MetricSet:
    """Accuracy, NLL, Brier score and ECE of the model average.

    Args:
        top_k: further accuracies, ``(5,)`` adds ``"top_5_accuracy"``.
        num_bins: bins of the ECE and of its relatives.
        diagnostics: adds arrays beside the numbers. ``"reliability_num_examples"``, ``"reliability_confidence"`` and
            ``"reliability_accuracy"`` are the parts of :class:`Reliability`, ``[num_bins]``. ``"entropy_histogram"`` is
            ``int32[20]``, the number of examples by the entropy of the model average, in bins of equal width between 0
            and ``log C`` nats. ``"accuracy_per_class"`` is ``[C]``, NaN for a class without examples.
        extra: names of further metrics: ``"precision"``, ``"recall"``, ``"f1"``, ``"auroc"``, ``"average_precision"``,
            ``"classwise_ece"``, each the mean over classes, ``"adaptive_ece"``, and the arrays ``"ece_per_class"``
            ``[C]`` and ``"confusion_matrix"`` ``[C, C]``, as the functions of these names describe them.

    Returns:
        A :class:`MetricSet`, whose summary is ``[N, …, C]`` log-probabilities.

    Raises:
        ValueError: a number is not positive, or a name is unknown.

    Example:
        >>> import baal_jax as baal
        >>> from baal_jax import metrics
        >>> metric_set = metrics.classification(extra=("f1", "auroc"))
        >>> summary = metric_set.summarise(baal.Predictions(jnp.log(jnp.array([[[0.9, 0.1], [0.2, 0.8]]]))))
        >>> sorted(metric_set.compute(summary, jnp.array([0, 1])))
        ['accuracy', 'auroc', 'brier', 'ece', 'f1', 'nll']
    """
    ks, num_bins = tuple(checks.positive_int("top_k", k) for k in top_k), checks.positive_int("num_bins", num_bins)
    return _classification(ks, num_bins, bool(diagnostics), _known_names(extra, CLASSIFICATION_EXTRA))


def regression(
    *, noise_variance: float = 0.0, extra: Sequence[str] = (), levels: Sequence[float] = (0.05, 0.5, 0.95)
) -> MetricSet:
    r"""RMSE, mean absolute error, and NLL and CRPS of a Gaussian with the mean and variance over the draws.

    .. math:: \mathrm{NLL} = \tfrac12 \log 2\pi\sigma_n^2 + \frac{(y_n - \bar f_n)^2}{2 \sigma_n^2},
              \qquad \sigma_n^2 = \mathrm{Var}_s f_{sn} + \sigma^2

    ``"crps"`` is :func:`gaussian_crps` of the same Gaussian. These four keep two numbers an example and output
    dimension, however many draws there are. What reads the draws themselves keeps more, and has to be asked for.

    Args:
        noise_variance: ``σ²``, the variance of the observation noise.
        extra: names of further metrics. ``"crps_draws"`` and ``"crps_fair"`` are the two versions of :func:`crps`; they
            keep all ``S`` draws of an example, in order. ``"pinball"`` is ``[L]``, and ``"coverage"`` that of the
            interval between the lowest and the highest level; they keep ``L`` quantiles.
        levels: the ``L`` levels of these quantiles.

    Returns:
        A :class:`MetricSet`, whose summary is the mean and the variance ``[N, …]``, and what ``extra`` keeps.

    Raises:
        ValueError: a number is out of range, a name is unknown, or draws, which lack the noise, are asked for beside a
            ``noise_variance``.

    Example:
        >>> import baal_jax as baal
        >>> from baal_jax import metrics
        >>> metric_set = metrics.regression(extra=("coverage",))
        >>> summary = metric_set.summarise(baal.Predictions(jnp.array([[[0.0]], [[2.0]]])))
        >>> found = metric_set.compute(summary, jnp.array([2.0]))
        >>> {name: round(float(value), 3) for name, value in found.items()}
        {'rmse': 1.0, 'mae': 1.0, 'nll': 1.419, 'crps': 0.602, 'coverage': 0.0}
    """
    noise_variance, names = (
        checks.finite_float("noise_variance", noise_variance, 0.0),
        _known_names(extra, REGRESSION_EXTRA),
    )
    quantile_levels = real.static_levels("levels", levels)
    if names and noise_variance > 0:
        raise ValueError(
            f"extra={names!r} reads the draws, which lack the noise of noise_variance={noise_variance}: "
            "let the model add the noise to its draws and leave noise_variance at 0"
        )
    if "coverage" in names and len(set(quantile_levels)) < 2:
        raise ValueError(f"levels={quantile_levels!r} bound no interval to cover: pass at least two")
    return _regression(noise_variance, names, quantile_levels)


def default_metrics(targets: Array) -> MetricSet:
    """Classification for integer targets, regression for others."""
    return classification() if jnp.issubdtype(targets.dtype, jnp.integer) else regression()


@functools.cache  # one object for one configuration, so that evaluate compiles once
def _classification(top_k: tuple[int, ...], num_bins: int, diagnostics: bool, extra: tuple[str, ...]) -> MetricSet:
    def summarise(predictions: Predictions) -> Array:
        return model_average(predictions.logits)

    def hits(k: int) -> Metric:
        return mean_metric(lambda log_probs, targets: classes.hit_terms(log_probs, targets, k))

    def binned(count: Callable, finish: Callable, compute: Callable) -> Metric:
        return Metric(
            lambda log_probs, targets: compute(log_probs, targets, num_bins=num_bins),
            lambda log_probs, targets: count(log_probs, targets, num_bins),
            finish,
        )

    bins, error = calibration.bin_counts, calibration.calibration_error_of
    named = {
        "accuracy": hits(1),
        **{f"top_{k}_accuracy": hits(k) for k in top_k},
        "nll": mean_metric(classes.nll_terms),
        "brier": mean_metric(classes.brier_terms),
        "ece": binned(bins, error, calibration.ece),
    }
    if diagnostics:
        named |= {f"reliability_{part}": _reliability_part(part, num_bins) for part in calibration.Reliability._fields}
        named |= {
            "entropy_histogram": _counted(calibration.entropy_histogram),
            "accuracy_per_class": _ratio(classes.recall_of, average=None, zero_division=float("nan")),
        }
    available = {
        "precision": _ratio(classes.precision_of),
        "recall": _ratio(classes.recall_of),
        "f1": _ratio(classes.f1_of),
        "confusion_matrix": _counted(classes.confusion_matrix),
        "auroc": Metric(functools.partial(ranking.auroc, average="macro")),
        "average_precision": Metric(functools.partial(ranking.average_precision, average="macro")),
        "adaptive_ece": Metric(functools.partial(calibration.adaptive_ece, num_bins=num_bins)),
        "classwise_ece": binned(
            calibration.classwise_counts,
            lambda counts: averaged(error(counts), "macro"),
            calibration.classwise_ece,
        ),
        "ece_per_class": binned(calibration.bin_counts_per_class, error, calibration.ece_per_class),
    }
    named |= {name: available[name] for name in extra}
    return MetricSet(summarise, Streamable(tuple(named.items())))


@functools.cache
def _regression(noise_variance: float, extra: tuple[str, ...], levels: tuple[float, ...]) -> MetricSet:
    keeps_draws = "crps_draws" in extra or "crps_fair" in extra
    keeps_quantiles = "pinball" in extra or "coverage" in extra
    lowest, highest = levels.index(min(levels)), levels.index(max(levels))

    def summarise(predictions: Predictions) -> tuple:
        checks.draws("outputs", predictions.logits)
        outputs = numerics.as_float(predictions.logits)
        moments = jnp.mean(outputs, axis=0), jnp.var(outputs, axis=0)
        kept = {"draws": real.sorted_draws(outputs)} if keeps_draws else {}
        if keeps_quantiles:
            kept["quantiles"] = jnp.moveaxis(real.quantiles(outputs, levels), 0, -1)
        return (*moments, kept) if kept else moments

    def variance_of(summary: tuple) -> Array:
        return jnp.maximum(summary[1] + noise_variance, 1e-12)

    def of_quantile(level: int) -> Metric:
        return mean_metric(
            lambda summary, targets: real.pinball_terms(summary[2]["quantiles"][..., level], targets, levels[level])
        )

    def covered(summary: tuple, targets: Array) -> tuple[Array, Array]:
        found = summary[2]["quantiles"]
        return real.coverage_terms(found[..., lowest], found[..., highest], targets)

    def of_draws(fair: bool) -> Metric:
        return mean_metric(lambda summary, targets: real.crps_terms(summary[2]["draws"], targets, fair))

    named = {
        "rmse": mean_metric(lambda summary, targets: real.squared_terms(summary[0], targets), jnp.sqrt),
        "mae": mean_metric(lambda summary, targets: real.absolute_terms(summary[0], targets)),
        "nll": mean_metric(lambda summary, targets: real.gaussian_nll_terms(summary[0], variance_of(summary), targets)),
        "crps": mean_metric(
            lambda summary, targets: real.gaussian_crps_terms(summary[0], variance_of(summary), targets)
        ),
    }
    available = {
        "crps_draws": of_draws(fair=False),
        "crps_fair": of_draws(fair=True),
        "pinball": _stacked([of_quantile(level) for level in range(len(levels))]),
        "coverage": mean_metric(covered),
    }
    named |= {name: available[name] for name in extra}
    return MetricSet(summarise, Streamable(tuple(named.items())))


def _reliability_part(part: str, num_bins: int) -> Metric:
    return Metric(
        lambda log_probs, targets: getattr(calibration.reliability(log_probs, targets, num_bins=num_bins), part),
        lambda log_probs, targets: calibration.bin_counts(log_probs, targets, num_bins),
        lambda counts: getattr(calibration.reliability_of(counts), part),
    )


def _counted(count: Callable[[Array, Array], Array]) -> Metric:
    return Metric(count, count, lambda counts: counts)


def _ratio(of: Callable[..., Array], average: str | None = "macro", zero_division: float = 0.0) -> Metric:
    def finish(counts: classes.ClassCounts) -> Array:
        return of(counts, average, zero_division)

    return Metric(
        lambda log_probs, targets: finish(classes.class_counts(log_probs, targets)), classes.class_counts, finish
    )


def _stacked(parts: list[Metric]) -> Metric:
    def count(summary: PyTree, targets: Array) -> tuple[_sums.DoubleSum, Array]:
        sums = [part.sums_of(summary, targets) for part in parts if part.sums_of is not None]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *sums)

    def compute(summary: PyTree, targets: Array) -> Array:
        return jnp.stack([part.compute(summary, targets) for part in parts])

    def finish(sums: tuple[_sums.DoubleSum, Array]) -> Array:
        return _sums.double_value(sums[0]) / sums[1].astype(jnp.float32)

    return Metric(compute, count, finish)


def _known_names(extra: Sequence[str], names: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(extra, str):
        raise ValueError(f"extra={extra!r} must be a sequence of names: pass ({extra!r},)")
    unknown = [name for name in extra if name not in names]
    if unknown:
        raise ValueError(f"extra holds {unknown[0]!r}, which is not one of {', '.join(names)}")
    return tuple(dict.fromkeys(extra))
