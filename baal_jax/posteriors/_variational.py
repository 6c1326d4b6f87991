"""Gaussian weights: a dict ``{"mean": tree, "raw_std": tree}`` anywhere among parameters is one factorised Gaussian.

The standard deviation is ``softplus(raw_std)``, so any real number is allowed. A None in ``raw_std`` is a weight that
is not random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax._util import checks, random
from baal_jax.typing import Array, Key, PyTree


def positive(name: str, value: Any) -> float:
    """Returns ``value`` as a finite float above zero."""
    number = checks.finite_float(name, value, 0.0)
    if not number:
        raise ValueError(f"{name}={value!r} must be positive: a Gaussian without spread has no finite divergence")
    return number


def std_of(raw_std: Array) -> Array:
    """The standard deviation, in the type of its parameter."""
    return jax.nn.softplus(raw_std)


def constant_raw_std(mean: Array, std: float) -> Array:
    """What makes the standard deviation ``std`` everywhere: the inverse of softplus."""
    return jnp.full_like(mean, std + math.log(-math.expm1(-std)))


def standard_normal(key: Key, like: Sequence[Array]) -> list[Array]:
    """Noise of the shapes and types of some arrays, from one generator: several take that much longer to compile."""
    ends = list(itertools.accumulate(leaf.size for leaf in like))
    noise = jax.random.normal(random.vectorised(key), (ends[-1],), jnp.float32)
    pieces = jnp.split(noise, ends[:-1])
    return [piece.reshape(leaf.shape).astype(leaf.dtype) for piece, leaf in zip(pieces, like, strict=True)]


def sample(key: Key, params: PyTree) -> PyTree:
    """One set of random weights, in place of every mean; None for the others, which all draws share."""
    means = [mean for mean, _ in _random_weights(params)]
    noise = iter(standard_normal(key, means))

    def one(raw_std: Array | None, mean: Array) -> Array | None:
        if raw_std is None:
            return None
        return mean + std_of(raw_std) * next(noise)

    def drawn(part: PyTree) -> PyTree:
        if not _is_gaussian(part):
            return None
        return {"mean": jax.tree.map(one, part["raw_std"], part["mean"], is_leaf=_is_none)}

    return jax.tree.map(drawn, params, is_leaf=_is_gaussian)


def with_draw(params: PyTree, draw: PyTree) -> PyTree:
    """The parameters with drawn weights in place of the means, and without ``raw_std``."""

    def merged(part: PyTree, drawn: PyTree) -> PyTree:
        if not _is_gaussian(part):
            return part
        return {"mean": jax.tree.map(lambda mean, w: mean if w is None else w, part["mean"], drawn["mean"])}

    return jax.tree.map(merged, params, draw, is_leaf=_is_gaussian)


def kl_divergence(params: PyTree, prior_std: float = 1.0) -> Array:
    r"""Divergence of all Gaussian weights from an isotropic Gaussian prior around zero, in nats.

    .. math:: \mathrm{KL}(q \| p) = \sum_i \Bigl( \log \frac{\sigma_p}{\sigma_i}
              + \frac{\sigma_i^2 + \mu_i^2}{2 \sigma_p^2} - \frac12 \Bigr)

    Args:
        params: parameters of a network, Bayesian layers among them. Other parameters do not count.
        prior_std: ``σ_p``.

    Returns:
        ``float32[]``.

    Raises:
        ValueError: no parameter is a Gaussian.

    Example:
        >>> from baal_jax.posteriors import layers
        >>> net = layers.BayesianDense(2, initial_std=1.0, kernel_init=jax.nn.initializers.zeros)
        >>> params = net.init(jax.random.key(0), jnp.ones((1, 3)), deterministic=True)["params"]
        >>> bool(abs(layers.kl_divergence(params)) < 1e-5)
        True
    """
    return jnp.sum(jnp.stack([_kl(mean, raw_std, prior_std) for mean, raw_std in _random_weights(params)]))


def _kl(mean: Array, raw_std: Array, prior_std: float) -> Array:
    mean, std = (leaf.astype(jnp.float32) / prior_std for leaf in (mean, std_of(raw_std.astype(jnp.float32))))
    return jnp.sum(0.5 * (std**2 + mean**2 - 1.0) - jnp.log(std))


def _is_gaussian(tree: PyTree) -> bool:
    return isinstance(tree, Mapping) and {*tree} == {"mean", "raw_std"}


def _is_none(leaf: PyTree) -> bool:
    return leaf is None


def _random_weights(params: PyTree) -> list[tuple[Array, Array]]:
    """Pairs of mean and ``raw_std``, at least one."""
    found = []
    for part in filter(_is_gaussian, jax.tree.leaves(params, is_leaf=_is_gaussian)):
        raw_stds, means = jax.tree.leaves(part["raw_std"], is_leaf=_is_none), jax.tree.leaves(part["mean"])
        found += [(mean, raw) for mean, raw in zip(means, raw_stds, strict=True) if raw is not None]
    if not found:
        raise ValueError(
            "the parameters hold no Gaussian weights: build the network from baal_jax.posteriors.layers, or let "
            "select pick some parameters"
        )
    return found
