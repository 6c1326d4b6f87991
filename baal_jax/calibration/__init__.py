r"""Calibration after training: scalings of logits, fitted to examples that the network was not trained on.

A scaling is a pair of pure functions. ``fit`` finds the parameters with the smallest negative log-likelihood of the
Bayesian model average, ``apply`` changes the logits of any draw with them:

.. math:: \min_\theta\; -\frac{1}{\sum_n w_n} \sum_n w_n \log \frac1S \sum_s
          \operatorname{softmax}\bigl(g_\theta(z_{sn})\bigr)_{y_n} + \text{penalty}(\theta)

A scaling acts on each draw before the average, so a heuristic reads calibrated draws. With one prediction ``[N, …, C]``
it is the textbook method and the problem is convex (temperature: in ``1/T``); with draws ``[S, N, …, C]`` it is not. To
calibrate the average itself, fit and apply to ``metrics.model_average(logits)``.

:func:`calibrated` makes a posterior of any posterior, so that a loop calibrates in every round, before it scores.
A negative penalty, and bounds other than two positive numbers in order, are refused with a ``ValueError``.
"""

from collections.abc import Callable

from baal_jax.calibration._posterior import CalibratedState, calibrated
from baal_jax.calibration._scalings import AffineParams, Scaling, TemperatureParams, dirichlet, temperature, vector

REGISTRY: dict[str, Callable[..., Scaling]] = {"dirichlet": dirichlet, "temperature": temperature, "vector": vector}
"""Name → builder of a :class:`Scaling`, all of whose arguments have defaults."""

__all__ = ["REGISTRY", "AffineParams", "CalibratedState", "Scaling", "TemperatureParams", "calibrated", "dirichlet",
           "temperature", "vector"]  # fmt: skip
