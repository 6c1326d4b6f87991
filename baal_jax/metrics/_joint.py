"""Joint log-likelihood of groups of labels."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, numerics


def joint_log_likelihood(outputs: Array, targets: Array, groups: Array, *, noise: float | None = None) -> Array:
    r"""Joint log-likelihood of the labels of a group, which tells posteriors apart that agree example by example.

    .. math:: \log \tfrac1S \sum_s \prod_{n \in \text{group}} p_s(y_n)

    Groups are of any examples: ``jnp.arange(N).reshape(-1, 10)`` are ten neighbours each, and ids may repeat (dyadic
    sampling). With ``S`` draws a value is at best ``log S`` below that of the best draw: large groups need many.

    Args:
        outputs: ``[S, N, …, C]`` logits; for regression means, or with ``noise=None`` means and log-variances.
        targets: ``int[N, …]`` classes, or ``float[N, …, C]`` values (``[N, …]`` of one); −1 and NaN count as certain.
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
        >>> certain = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))              # two draws that contradict each other
        >>> logits, targets = jnp.repeat(certain[:, None], 2, axis=1), jnp.array([0, 0])
        >>> print(metrics.joint_log_likelihood(logits, targets, jnp.array([[0, 1]])))   # ½, and not ½ · ½
        [-0.6931472]
    """
    if groups.ndim != 2 or not jnp.issubdtype(groups.dtype, jnp.integer):
        raise ValueError(f"groups are {groups.dtype}{groups.shape}, but integer ids [G, τ] are needed")
    return _joint_log_likelihood(outputs, targets, groups, checks.noise(noise))


@partial(numerics.jit, static_argnames="noise")
def _joint_log_likelihood(outputs: Array, targets: Array, groups: Array, noise: float | None) -> Array:
    of_classes = jnp.issubdtype(targets.dtype, jnp.integer)
    single = (_log_likelihood_of_classes if of_classes else _gaussian_log_likelihood)(outputs, targets, noise)
    single = jnp.sum(single, axis=tuple(range(2, single.ndim)))  # [S, N]

    def joint(members: Array) -> Array:
        of_members = jnp.where((members >= 0)[None], single[:, jnp.maximum(members, 0)], 0.0)
        return numerics.log_mean_exp(jnp.sum(of_members, axis=1))

    return jax.vmap(joint)(groups)


def _log_likelihood_of_classes(logits: Array, targets: Array, noise: float | None) -> Array:
    checks.classes("outputs", logits)
    if noise is not None:
        raise ValueError(f"noise={noise} belongs to regression, but the targets are integer classes: leave it out")
    if targets.shape != logits.shape[1:-1]:
        raise ValueError(f"targets have shape {targets.shape}, but {logits.shape[1:-1]} is needed for these outputs")
    log_p = numerics.log_probs(logits)
    chosen = jnp.broadcast_to(jnp.maximum(targets, 0)[None, ..., None], (*log_p.shape[:-1], 1))
    return jnp.where((targets >= 0)[None], jnp.take_along_axis(log_p, chosen, axis=-1)[..., 0], 0.0)


def _gaussian_log_likelihood(outputs: Array, targets: Array, noise: float | None) -> Array:
    mean, log_variance = numerics.gaussian("outputs", outputs, noise)(outputs)
    targets = numerics.targets_for("the outputs", mean[0], numerics.as_float(targets))
    known = ~jnp.isnan(targets)
    error = jnp.where(known, targets, 0.0)[None] - mean
    log_p = -0.5 * (jnp.log(2.0 * jnp.pi) + log_variance + error**2 * jnp.exp(-log_variance))
    return jnp.where(known[None], log_p, 0.0)
