"""Scores of one prediction: how far from confident the mean is, and how much the draws spread."""

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, numerics


@numerics.on_logits
def margin(logits: Array) -> Array:
    r"""Minus the margin, the gap between the two most probable classes of the mean prediction.

    .. math:: -(\bar p_{(1)} - \bar p_{(2)})

    Args:
        logits: ``[S, N, …, C]`` unnormalised log-probabilities, one array with ``C ≥ 2``, else a ``ValueError``.

    Returns:
        ``[N, …]`` scores between −1 (confident) and 0 (a tie).

    References:
        Scheffer, Decomain and Wrobel, `Active hidden Markov models for information extraction
        <https://doi.org/10.1007/3-540-44816-0_31>`_, 2001.

    Example:
        >>> print(heuristics.margin(jnp.log(jnp.array([[[0.5, 0.25, 0.25]]]))))
        [-0.25]
    """
    p = numerics.mean_over_log_probs(jnp.exp, logits)
    # Not top_k: on a CPU a sort, before which all else would be computed anew for every comparison.
    best = jax.lax.argmax(p, p.ndim - 1, jnp.int32)[..., None]
    first = jax.lax.broadcasted_iota(jnp.int32, p.shape, p.ndim - 1) == best
    return jnp.max(p, axis=-1, where=~first, initial=0.0) - jnp.sum(p, axis=-1, where=first)


@numerics.on_logits
def least_confidence(logits: Array) -> Array:
    r"""One minus the probability of the most probable class of the mean prediction (Baal's Certainty, turned round).

    .. math:: 1 - \max_c \bar p_c

    Args:
        logits: ``[S, N, …, C]`` unnormalised log-probabilities, one array with ``C ≥ 2``, else a ``ValueError``.

    Returns:
        ``[N, …]`` scores between 0 and ``1 − 1/C``.

    References:
        Lewis and Gale 1994, `A sequential algorithm for training text classifiers <https://arxiv.org/abs/cmp-lg/9407020>`_.

    Example:
        >>> print(heuristics.least_confidence(jnp.log(jnp.array([[[0.5, 0.25, 0.25]]]))))
        [0.5]
    """
    return 1.0 - jnp.max(numerics.mean_over_log_probs(jnp.exp, logits), axis=-1)


@numerics.on_logits
def variation_ratio(logits: Array) -> Array:
    r"""Variation ratio: the share of draws that do not vote for the most frequent class.

    .. math:: 1 - \tfrac1S \max_c \sum_s [\arg\max_k p_{sk} = c]

    A piecewise constant score: its gradient is zero.

    Args:
        logits: ``[S, N, …, C]`` unnormalised log-probabilities, one array with ``C ≥ 2``, else a ``ValueError``.
            A draw with ties votes for the first of them.

    Returns:
        ``[N, …]`` scores between 0 and ``1 − 1/C``; NaN where a draw holds NaN.

    References:
        Freeman, *Elementary applied statistics*, 1965; Gal, Islam and Ghahramani 2017, as :func:`bald`.

    Example:
        >>> votes = jnp.array([0, 0, 0, 1])
        >>> print(heuristics.variation_ratio(9 * jax.nn.one_hot(votes, 3)[:, None]))
        [0.25]
    """

    def vote(logits: Array) -> Array:
        votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=numerics.as_float(logits).dtype)
        return jnp.where(jnp.any(jnp.isnan(logits), axis=-1, keepdims=True), jnp.nan, votes)

    return 1.0 - jnp.max(numerics.mean_over_draws(vote, logits), axis=-1)


@numerics.on_logits
def mean_std(logits: Array) -> Array:
    r"""Standard deviation of the class probabilities over the draws, averaged over classes.

    .. math:: \tfrac1C \sum_c \sqrt{\tfrac1S \sum_s p_{sc}^2 - \bar p_c^2}

    Args:
        logits: ``[S, N, …, C]`` unnormalised log-probabilities, one array with ``C ≥ 2``, else a ``ValueError``.

    Returns:
        ``[N, …]`` scores between 0 and 1/2.

    References:
        Kampffmeyer, Salberg and Jenssen, `Semantic segmentation of small objects and modeling of uncertainty
        <https://doi.org/10.1109/CVPRW.2016.90>`_, 2016; Kendall, Badrinarayanan and Cipolla, `Bayesian SegNet
        <https://arxiv.org/abs/1511.02680>`_, 2015.

    Example:
        >>> certain = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> print(heuristics.mean_std(certain[:, None]))
        [0.5]
    """
    mean = numerics.mean_over_log_probs(jnp.exp, logits)
    spread = numerics.mean_over_log_probs(lambda log_p: (jnp.exp(log_p) - mean) ** 2, logits)
    level = spread == 0  # the square root has no gradient at 0
    return jnp.mean(jnp.where(level, 0.0, jnp.sqrt(jnp.where(level, 1.0, spread))), axis=-1)


@numerics.jit
def variance(outputs: Array) -> Array:
    r"""Variance of regression outputs over the draws, averaged over output dimensions.

    .. math:: \tfrac1C \sum_c \bigl(\tfrac1S \sum_s f_{sc}^2 - \bar f_c^2\bigr)

    Args:
        outputs: ``[S, N, …, C]`` regression outputs, one array, else a ``ValueError``; used as they are (no softmax).

    Returns:
        ``[N, …]`` scores in squared units of the outputs.

    References:
        Seo et al., `Gaussian process regression: active data selection and test point rejection
        <https://doi.org/10.1109/IJCNN.2000.861310>`_, 2000; Tsymbalov, Panov and Shapeev, `Dropout-based active
        learning for regression <https://arxiv.org/abs/1806.09856>`_, 2018.

    Example:
        >>> print(heuristics.variance(jnp.array([1.0, 3.0]).reshape(2, 1, 1)))
        [1.]
    """
    checks.draws("outputs", outputs)
    return jnp.mean(numerics.variance_over_draws(numerics.as_float, outputs), axis=-1)
