"""What a set of draws, or a Gaussian over outputs, predicts: array functions of outputs ``[S, N, …, C]``.

The mean prediction of classes is :func:`baal_jax.metrics.model_average`; single scores are in
:mod:`baal_jax.heuristics`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax import _checks, _numerics, heuristics
from baal_jax.heuristics._gaussian import _mean_and_log_variance, _positive
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
        >>> from baal_jax import predictive
        >>> certain = jnp.log(jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]]))          # two draws that contradict each other
        >>> print(predictive.uncertainty(certain).epistemic)
        [0.6931472]
    """
    return Uncertainty(heuristics.entropy(logits), heuristics.expected_entropy(logits), heuristics.bald(logits))


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
        >>> from baal_jax import predictive
        >>> means = jnp.array([[[-1.0]], [[1.0]]])
        >>> print(jnp.stack(predictive.gaussian_uncertainty(means, noise=2.0)).ravel())
        [5. 4. 1.]
    """
    mean, log_variance = _mean_and_log_variance("outputs", outputs, _positive(noise))
    aleatoric, epistemic = jnp.mean(jnp.exp(log_variance), axis=0), jnp.var(mean, axis=0)
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


@jax.jit
def probit(mean: Array, covariance: Array) -> Array:
    r"""Class probabilities under a Gaussian over logits, without drawing from it.

    .. math:: \mathbb E\,[\operatorname{softmax}(f)]_c \propto
              \Bigl( \sum_k \exp\bigl(-\kappa_{ck} (\bar f_c - \bar f_k)\bigr) \Bigr)^{-1}, \qquad
              \kappa_{ck} = 1 / \sqrt{1 + \tfrac\pi8 \operatorname{Var}(f_c - f_k)}

    The logistic function is nearly the distribution function of a Gaussian, whose mean under another one is known: with
    two classes this is MacKay's formula, and more are made of their pairs, which is rougher the more there are: draw
    where that matters. Only differences of logits count, as in a softmax, so what all logits have in common may be as
    uncertain as it likes.

    Args:
        mean: ``[N, …, C]`` mean logits.
        covariance: ``[N, …, C, C]``, or ``[N, …, C]`` variances of logits that are independent of one another.

    Returns:
        ``[N, …, C]`` log-probabilities; as one draw, ``[None]``, they go where draws do.

    Raises:
        ValueError: the shapes do not fit.

    References:
        MacKay, `The evidence framework applied to classification networks
        <https://doi.org/10.1162/neco.1992.4.5.720>`_, 1992; Lu, Ie and Sha, `Mean-field approximation to
        Gaussian-softmax integral <https://arxiv.org/abs/2006.07584>`_, 2020.

    Example:
        >>> from baal_jax import predictive
        >>> log_probs = predictive.probit(jnp.array([[1.0, -1.0]]), jnp.array([[12.0, 12.0]]) / jnp.pi)
        >>> bool(jnp.allclose(jnp.exp(log_probs)[0, 0], jax.nn.sigmoid(2.0 / 2.0)))      # κ = ½
        True
    """
    mean, covariance = _numerics.as_float(mean), _numerics.as_float(covariance)
    num_classes = mean.shape[-1]
    if covariance.shape == mean.shape:
        covariance = jnp.vectorize(jnp.diag, signature="(c)->(c,c)")(covariance)
    if covariance.shape != (*mean.shape, num_classes):
        raise ValueError(f"covariance has shape {covariance.shape}, but {(*mean.shape, num_classes)} is needed")
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    of_gap = jnp.maximum(variance[..., :, None] + variance[..., None, :] - 2.0 * covariance, 0.0)
    gaps = (mean[..., :, None] - mean[..., None, :]) * jax.lax.rsqrt(1.0 + (jnp.pi / 8.0) * of_gap)
    return _numerics.log_probs(-jax.nn.logsumexp(-gaps, axis=-1))


def joint_log_likelihood(outputs: Array, targets: Array, groups: Array, *, noise: float | None = None) -> Array:
    r"""How probable all labels of a group are together, which tells posteriors apart that agree example by example.

    .. math:: \log \tfrac1S \sum_s \prod_{n \in \text{group}} p_s(y_n)

    Groups are of any examples: ``jnp.arange(N).reshape(-1, 10)`` are ten neighbours each, and ids may repeat, as in
    dyadic sampling (all members of a group are one of two examples). With ``S`` draws a value is at best ``log S``
    below that of the best draw, so large groups need many.

    Args:
        outputs: ``[S, N, …, C]`` logits; for regression means, or with ``noise=None`` means and log-variances.
        targets: ``int[N, …]`` classes, or ``float[N, …, C]`` values (``[N, …]`` for a single one); −1 and NaN are
            unknown and count as certain.
        groups: ``int[G, τ]`` ids of examples; −1 is padding.
        noise: ``σ``, standard deviation of the labels in regression, where the network does not predict it.

    Returns:
        ``[G]``, in nats. Divide by ``τ`` for the scale of a single label.

    Raises:
        ValueError: the shapes do not fit, ``groups`` are no ids, or ``noise`` is given for classes.

    References:
        Wen et al., `From predictions to decisions: the importance of joint predictive distributions
        <https://arxiv.org/abs/2107.09224>`_, 2021; Osband et al., `Evaluating high-order predictive distributions in
        deep learning <https://arxiv.org/abs/2202.13509>`_, 2022.

    Example:
        >>> from baal_jax import predictive
        >>> certain = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))              # two draws that contradict each other
        >>> logits, targets = jnp.repeat(certain[:, None], 2, axis=1), jnp.array([0, 0])
        >>> print(predictive.joint_log_likelihood(logits, targets, jnp.array([[0, 1]])))   # ½, and not ½ · ½
        [-0.6931472]
    """
    if groups.ndim != 2 or not jnp.issubdtype(groups.dtype, jnp.integer):
        raise ValueError(f"groups are {groups.dtype}{groups.shape}, but integer ids [G, τ] are needed")
    return _joint_log_likelihood(outputs, targets, groups, _positive(noise))


@partial(jax.jit, static_argnames="noise")
def _joint_log_likelihood(outputs: Array, targets: Array, groups: Array, noise: float | None) -> Array:
    if jnp.issubdtype(targets.dtype, jnp.integer):
        single = _log_likelihood_of_classes(outputs, targets, noise)
    else:
        single = _gaussian_log_likelihood(outputs, targets, noise)
    single = jnp.sum(single, axis=tuple(range(2, single.ndim)))  # [S, N]

    def joint(members: Array) -> Array:
        of_members = jnp.where((members >= 0)[None], single[:, jnp.maximum(members, 0)], 0.0)
        return _numerics.log_mean_exp(jnp.sum(of_members, axis=1))

    return jax.vmap(joint)(groups)


def _log_likelihood_of_classes(logits: Array, targets: Array, noise: float | None) -> Array:
    _checks.classes("outputs", logits)
    if noise is not None:
        raise ValueError(f"noise={noise} belongs to regression, but the targets are integer classes: leave it out")
    if targets.shape != logits.shape[1:-1]:
        raise ValueError(f"targets have shape {targets.shape}, but {logits.shape[1:-1]} is needed for these outputs")
    log_p = _numerics.log_probs(logits)
    chosen = jnp.broadcast_to(jnp.maximum(targets, 0)[None, ..., None], (*log_p.shape[:-1], 1))
    return jnp.where((targets >= 0)[None], jnp.take_along_axis(log_p, chosen, axis=-1)[..., 0], 0.0)


def _gaussian_log_likelihood(outputs: Array, targets: Array, noise: float | None) -> Array:
    mean, log_variance = _mean_and_log_variance("outputs", outputs, noise)
    if targets.ndim == mean.ndim - 2 and mean.shape[-1] == 1:
        targets = targets[..., None]
    if targets.shape != mean.shape[1:]:
        raise ValueError(f"targets have shape {targets.shape}, but {mean.shape[1:]} is needed for these outputs")
    targets = _numerics.as_float(targets)
    known = ~jnp.isnan(targets)
    error = jnp.where(known, targets, 0.0)[None] - mean
    log_p = -0.5 * (jnp.log(2.0 * jnp.pi) + log_variance + error**2 * jnp.exp(-log_variance))
    return jnp.where(known[None], log_p, 0.0)
