"""Sets of metrics that a loop reports: a map over batches (``summarise``) and a reduce over examples (``compute``)."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.metrics import _calibration as calibration
from baal_jax.metrics import _classification as classes
from baal_jax.metrics import _regression as real
from baal_jax.typing import Array, Predictions, PyTree

Metric = Callable[[PyTree, Array], Array]  # (summary, targets) -> value
_OF_MEAN: dict[str, Metric] = {
    "rmse": lambda summary, targets: real.rmse(summary[0], targets),
    "mae": lambda summary, targets: real.mae(summary[0], targets),
}


class MetricSet(NamedTuple):
    """Metrics as a map over batches and a reduce over examples, like an acquisition.

    A stream (:func:`~baal_jax.predict_stream`) is mapped batch by batch and reduced once, which changes no number.

    Attributes:
        summarise: ``Predictions -> summary``, a pytree with leading axis ``B``.
        compute: ``(summary [N, …], targets [N, …]) -> {name: value}``.

    Example:
        >>> metric_set = metrics.classification()
        >>> batches = jnp.log(jnp.array([[[0.9, 0.1], [0.8, 0.2]]])), jnp.log(jnp.array([[[0.6, 0.4]]]))
        >>> parts = [metric_set.summarise(Predictions(logits)) for logits in batches]
        >>> summary = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        >>> round(float(metric_set.compute(summary, jnp.array([0, 0, 1]))["accuracy"]), 3)
        0.667
    """

    summarise: Callable[[Predictions], PyTree]
    compute: Callable[[PyTree, Array], dict[str, Array]]


def model_average(logits: Array) -> Array:
    r"""Bayesian model average in probability space.

    .. math:: \log \bar p = \log \tfrac1S \sum_s \operatorname{softmax}(z_s)

    Args:
        logits: ``[S, N, …, C]``.

    Returns:
        ``[N, …, C]`` log-probabilities.

    Example:
        >>> print(jnp.exp(metrics.model_average(jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]])))))
        [[0.7 0.3]]
    """
    checks.classes("logits", logits)
    return numerics.log_mean_exp(numerics.log_probs(logits))


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
        >>> metric_set = metrics.classification(extra=("f1", "auroc"))
        >>> summary = metric_set.summarise(Predictions(jnp.log(jnp.array([[[0.9, 0.1], [0.2, 0.8]]]))))
        >>> sorted(metric_set.compute(summary, jnp.array([0, 1])))
        ['accuracy', 'auroc', 'brier', 'ece', 'f1', 'nll']
    """
    ks = tuple(checks.positive_int("top_k", k) for k in top_k)
    return _classification(ks, checks.positive_int("num_bins", num_bins), bool(diagnostics), _names(extra))


@functools.cache  # one object, so that evaluate compiles once
def multi_label() -> MetricSet:
    """Metrics of labels that are each there or not, from the mean over draws of their probabilities.

    ``"exact_match"``, the share of examples with all labels right, and ``"hamming_loss"``, that of wrong labels, at a
    threshold of ½; ``"f1_micro"`` over all labels and ``"f1_macro"``, the mean over labels, 0 without a hit;
    ``"average_precision"``, the mean over labels that occur; ``"nll"`` of a label in nats; its ``"ece"``.

    Returns:
        A :class:`MetricSet` for logits ``[S, N, …, C]`` and targets of 0, 1, and (unknown) −1 or NaN, ``[N, …, C]``.

    References:
        Read et al., `Classifier chains for multi-label classification
        <https://doi.org/10.1007/s10994-011-5256-5>`_, 2011.

    Example:
        >>> metric_set = metrics.multi_label()
        >>> summary = metric_set.summarise(Predictions(jnp.array([[[3.0, -3.0], [3.0, 3.0]]])))
        >>> values = metric_set.compute(summary, jnp.array([[1, 0], [1, 0]]))
        >>> print(values["exact_match"], values["hamming_loss"], values["f1_micro"])
        0.5 0.25 0.8
    """

    def summarise(predictions: Predictions) -> Array:
        checks.draws("logits", predictions.logits)
        logits = numerics.as_float(predictions.logits)
        return numerics.log_mean_exp(jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], axis=-1))

    def on_labels(metric: Callable[[Array, Array], Array], summary: Array, targets: Array) -> Array:
        """A metric of log-probabilities ``[N, C, 2]`` and targets 0, 1 or −1 ``[N, C]``."""
        targets = numerics.targets_for("the labels", summary[..., 0], targets)
        labels = jnp.where(targets >= 0, (targets > 0.5).astype(jnp.int32), -1)
        return metric(summary.reshape(-1, *summary.shape[-2:]), labels.reshape(-1, labels.shape[-1]))

    def exact_match(log_probs: Array, labels: Array) -> Array:
        right = (classes.predicted_class(log_probs) == labels) | (labels < 0)
        return classes.mean(jnp.all(right, axis=1), jnp.any(labels >= 0, axis=1))

    def average_precision(log_probs: Array, labels: Array) -> Array:
        values = jax.vmap(lambda *label: classes.average_precision(*label)[1], in_axes=1)(log_probs, labels)
        return classes.averaged(values, "macro")

    # Without any label that is known it is 0 as well.
    f1 = lambda *arrays: jnp.nan_to_num(classes.f1(*arrays, average=None)[1])  # noqa: E731
    f1_macro = lambda *arrays: jnp.mean(jax.vmap(f1, in_axes=1)(*arrays))  # noqa: E731
    named = {"exact_match": exact_match, "hamming_loss": lambda *arrays: 1.0 - classes.accuracy(*arrays)}
    named |= {"f1_micro": f1, "f1_macro": f1_macro, "average_precision": average_precision}
    named |= {"nll": classes.nll, "ece": calibration.ece}
    return _metric_set(summarise, {name: functools.partial(on_labels, metric) for name, metric in named.items()})


@functools.cache  # one object, so that evaluate compiles once
def gaussian_regression() -> MetricSet:
    r"""RMSE, mean absolute error, NLL, CRPS and coverage of networks that predict a mean and a log-variance.

    The draws are one Gaussian, with the mean and the variance of the mixture, :math:`\sigma_n^2 = \operatorname{Var}_s
    \mu_{sn} + \tfrac1S \sum_s \sigma_{sn}^2`; ``"coverage"`` is that of its central interval of 90 %.

    Returns:
        A :class:`MetricSet` for outputs ``[S, N, …, 2C]``, as of :func:`~baal_jax.losses.gaussian_nll`.

    References:
        Lakshminarayanan et al., `Simple and scalable predictive uncertainty estimation using deep ensembles
        <https://arxiv.org/abs/1612.01474>`_, 2017.

    Example:
        >>> metric_set = metrics.gaussian_regression()
        >>> summary = metric_set.summarise(Predictions(jnp.zeros((2, 3, 2))))
        >>> {name: round(float(value), 3) for name, value in metric_set.compute(summary, jnp.ones(3)).items()}
        {'rmse': 1.0, 'mae': 1.0, 'nll': 1.419, 'crps': 0.602, 'coverage': 1.0}
    """

    def summarise(predictions: Predictions) -> tuple[Array, Array]:
        mean, log_variance = numerics.gaussian("outputs", predictions.logits, None)(predictions.logits)
        return jnp.mean(mean, axis=0), jnp.var(mean, axis=0) + jnp.mean(jnp.exp(log_variance), axis=0)

    def coverage(summary: PyTree, targets: Array) -> Array:
        half = 1.6448536 * jnp.sqrt(summary[1])  # of a standard Gaussian, 5 % lie beyond
        return real.coverage(summary[0] - half, summary[0] + half, targets)

    named = _OF_MEAN | {"nll": lambda summary, targets: real.gaussian_nll(summary[0], summary[1], targets)}
    named |= {"crps": lambda summary, targets: real.gaussian_crps(summary[0], summary[1], targets)}
    named["coverage"] = coverage
    return _metric_set(summarise, named)


def regression(
    *, noise_variance: float | None = None, extra: Sequence[str] = (), levels: Sequence[float] = (0.05, 0.5, 0.95)
) -> MetricSet:
    r"""RMSE, mean absolute error, and NLL and CRPS of a Gaussian with the mean and variance over the draws.

    .. math:: \mathrm{NLL} = \tfrac12 \log 2\pi\sigma_n^2 + \frac{(y_n - \bar f_n)^2}{2 \sigma_n^2},
              \qquad \sigma_n^2 = \mathrm{Var}_s f_{sn} + \sigma^2

    Args:
        noise_variance: ``σ²``, the variance of the observation noise. By default it is what the variance over the draws
            leaves of the mean squared error, for each output dimension, on the data that are evaluated: draws of a mean
            know nothing of it. Give it where it is known; 0 for draws that hold it already.
        extra: names of further metrics. ``"crps_draws"`` and ``"crps_fair"`` are the two versions of :func:`crps`; they
            keep all ``S`` draws of an example, in order. ``"pinball"`` is ``[L]``, and ``"coverage"`` that of the
            interval between the lowest and the highest level; they keep ``L`` quantiles.
        levels: the ``L`` levels of these quantiles.

    Returns:
        A :class:`MetricSet`, whose summary is the mean and the variance ``[N, …]``, and what ``extra`` keeps.

    Raises:
        ValueError: a number is out of range, a name unknown, or draws, without the noise, go with ``noise_variance``.

    Example:
        >>> metric_set = metrics.regression(extra=("coverage",))
        >>> summary = metric_set.summarise(Predictions(jnp.array([[[0.0]], [[2.0]]])))
        >>> {name: round(float(value), 3) for name, value in metric_set.compute(summary, jnp.array([2.0])).items()}
        {'rmse': 1.0, 'mae': 1.0, 'nll': 1.419, 'crps': 0.602, 'coverage': 0.0}
    """
    if noise_variance is not None:
        noise_variance = checks.finite_float("noise_variance", noise_variance, 0.0)
    return _regression(noise_variance, _names(extra), real.static_levels(levels))


@functools.cache  # one object for one configuration, so that evaluate compiles once
def _classification(top_k: tuple[int, ...], num_bins: int, diagnostics: bool, extra: tuple[str, ...]) -> MetricSet:
    binned = functools.partial(functools.partial, num_bins=num_bins)
    part_of = lambda part: lambda *arrays: getattr(binned(calibration.reliability)(*arrays), part)  # noqa: E731
    named: dict[str, Metric] = {"accuracy": classes.accuracy}
    named |= {f"top_{k}_accuracy": functools.partial(classes.accuracy, k=k) for k in top_k}
    named |= {"nll": classes.nll, "brier": classes.brier, "ece": binned(calibration.ece)}
    if diagnostics:
        named |= {f"reliability_{part}": part_of(part) for part in calibration.Reliability._fields}
        named["entropy_histogram"] = calibration.entropy_histogram
        named["accuracy_per_class"] = functools.partial(classes.recall, average=None, zero_division=float("nan"))
    averaged = (classes.precision, classes.recall, classes.f1, classes.auroc, classes.average_precision)
    available: dict[str, Metric] = {one.__name__: functools.partial(one, average="macro") for one in averaged}
    binned_ones = (calibration.adaptive_ece, calibration.classwise_ece, calibration.ece_per_class)
    available |= {metric.__name__: binned(metric) for metric in binned_ones}
    available["confusion_matrix"] = classes.confusion_matrix
    return _metric_set(lambda predictions: model_average(predictions.logits), named | _chosen(extra, available))


@functools.cache
def _regression(noise_variance: float | None, extra: tuple[str, ...], levels: tuple[float, ...]) -> MetricSet:
    lowest, highest = levels.index(min(levels)), levels.index(max(levels))
    pinball = functools.partial(real.pinball, levels=levels)

    def summarise(predictions: Predictions) -> tuple:
        checks.draws("outputs", predictions.logits)
        outputs, kept = numerics.as_float(predictions.logits), {}
        if "crps_draws" in extra or "crps_fair" in extra:
            kept["draws"] = real.sorted_draws(outputs)
        if "pinball" in extra or "coverage" in extra:
            kept["quantiles"] = jnp.moveaxis(real.quantiles(outputs, levels), 0, -1)
        moments = jnp.mean(outputs, axis=0), jnp.var(outputs, axis=0)
        return (*moments, kept) if kept else moments

    def of_gaussian(metric: Callable[..., Array], summary: PyTree, targets: Array) -> Array:
        noise = real.noise_of(summary[0], summary[1], targets) if noise_variance is None else noise_variance
        # Draws that agree have no variance, and a NLL of −∞ where they are right.
        return metric(summary[0], jnp.maximum(summary[1] + noise, 1e-12), targets)

    def coverage(summary: PyTree, targets: Array) -> Array:
        quantiles = summary[2]["quantiles"]
        return real.coverage(quantiles[..., lowest], quantiles[..., highest], targets)

    gaussian = {"nll": real.gaussian_nll, "crps": real.gaussian_crps}
    named = _OF_MEAN | {name: functools.partial(of_gaussian, metric) for name, metric in gaussian.items()}
    available: dict[str, Metric] = {
        "crps_draws": lambda summary, targets: real.crps_of_sorted(summary[2]["draws"], targets, False),
        "crps_fair": lambda summary, targets: real.crps_of_sorted(summary[2]["draws"], targets, True),
        "pinball": lambda kept, targets: pinball(jnp.moveaxis(kept[2]["quantiles"], -1, 0), targets),
        "coverage": coverage,
    }
    chosen = _chosen(extra, available)
    if extra and noise_variance:
        lack = f"which lack the noise of noise_variance={noise_variance}"
        cure = "let the model add the noise to its draws and leave noise_variance at 0"
        raise ValueError(f"extra={extra!r} reads the draws, {lack}: {cure}")
    if "coverage" in extra and len(set(levels)) < 2:
        raise ValueError(f"levels={levels!r} bound no interval to cover: pass at least two")
    return _metric_set(summarise, named | chosen)


def _metric_set(summarise: Callable[[Predictions], PyTree], named: dict[str, Metric]) -> MetricSet:
    @numerics.jit_with_nan
    def values(summary: PyTree, targets: Array) -> list[Array]:  # a list, because jit sorts the names of a dict
        return [metric(summary, targets) for metric in named.values()]

    def compute(summary: PyTree, targets: Array) -> dict[str, Array]:
        return dict(zip(named, values(summary, targets), strict=True))

    return MetricSet(summarise, compute)


def _names(extra: Sequence[str]) -> tuple[str, ...]:
    if isinstance(extra, str):
        raise ValueError(f"extra={extra!r} must be a sequence of names: pass ({extra!r},)")
    return tuple(dict.fromkeys(extra))


def _chosen(extra: tuple[str, ...], available: dict[str, Metric]) -> dict[str, Metric]:
    if unknown := [name for name in extra if name not in available]:
        raise ValueError(f"extra holds {unknown[0]!r}, which is not one of {', '.join(available)}")
    return {name: available[name] for name in extra}
