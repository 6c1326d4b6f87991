"""Uncertainty of a label, split into what labels can and what they cannot remove."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.heuristics._information import bald, entropy, expected_entropy
from baal_jax.typing import Array


class Uncertainty(NamedTuple):
    """Three arrays of one shape, the first the sum of the other two.

    Attributes:
        total: of the label.
        aleatoric: what would be left if the parameters were known.
        epistemic: what the draws disagree about.
    """

    total: Array
    aleatoric: Array
    epistemic: Array


@jax.jit
def uncertainty(logits: Array) -> Uncertainty:
    r"""The entropy of a label, split into what labels can and what they cannot remove.

    .. math:: H[\bar p] = \mathbb E_s\, H[p_s] + I(y; \theta)

    Args:
        logits: ``[S, N, …, C]``.

    Returns:
        :class:`Uncertainty` in nats, ``[N, …]`` each: :func:`~baal_jax.heuristics.entropy`,
        :func:`~baal_jax.heuristics.expected_entropy` and :func:`~baal_jax.heuristics.bald`.

    Raises:
        ValueError: ``logits`` has fewer than three axes or one class.

    References:
        Depeweg et al., `Decomposition of uncertainty in Bayesian deep learning
        <https://arxiv.org/abs/1710.07283>`_, 2018.

    Example:
        >>> from baal_jax import heuristics
        >>> certain = jnp.log(jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]]))          # two draws that contradict each other
        >>> print(heuristics.uncertainty(certain).epistemic)
        [0.6931472]
    """
    return Uncertainty(entropy(logits), expected_entropy(logits), bald(logits))


def gaussian_uncertainty(outputs: Array, noise: float | None = None) -> Uncertainty:
    r"""The variance of a label in regression, split into that of the noise and that of the mean.

    .. math:: \operatorname{Var} y_c = \tfrac1S \sum_s \sigma_{sc}^2 + \operatorname{Var}_s \mu_{sc}

    Args:
        outputs: ``[S, N, …, 2C]``, ``C`` means and then ``C`` log-variances, as in
            :func:`~baal_jax.losses.gaussian_nll`; with ``noise`` given, ``[S, N, …, C]`` means.
        noise: ``σ``, standard deviation of the labels, where the network does not predict it.

    Returns:
        :class:`Uncertainty` in squared units of the outputs, ``[N, …, C]`` each.

    Raises:
        ValueError: ``outputs`` has fewer than three axes, its last one is odd, or ``noise`` is not positive.

    References:
        Kendall and Gal, `What uncertainties do we need in Bayesian deep learning for computer vision?
        <https://arxiv.org/abs/1703.04977>`_, 2017.

    Example:
        >>> from baal_jax import heuristics
        >>> means = jnp.array([[[-1.0]], [[1.0]]])
        >>> print(jnp.stack(heuristics.gaussian_uncertainty(means, noise=2.0)).ravel())
        [5. 4. 1.]
    """
    mean, log_variance = numerics.mean_and_log_variance("outputs", outputs, checks.noise(noise))
    aleatoric, epistemic = jnp.mean(jnp.exp(log_variance), axis=0), jnp.var(mean, axis=0)
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)
