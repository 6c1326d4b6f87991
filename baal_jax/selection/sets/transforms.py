"""Transforms of features, the second part of :func:`~baal_jax.selection.grid`.

A transform is ``(key, Features, labelled bool[N], counted bool[N]) -> Features``, where ``counted`` marks the rows that
are labelled or available. The builders below return one, by the paper of :func:`~baal_jax.selection.grid`, and refuse
a number that is not positive with a ``ValueError``.
"""

import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks
from baal_jax.selection._common import unit_rows
from baal_jax.selection.sets._kernel import Features, Transform, centred, conditioned, dense, sketched, trace

__all__ = ["Features", "Transform", "centre", "normalise", "posterior", "predictive", "scale", "sketch"]


def scale() -> Transform:
    r"""Divide the kernel by its mean diagonal over what is labelled (over all rows while nothing is).

    A Gaussian process then starts with a mean variance of one, so that ``noise`` means the same for any network.

    Example:
        >>> features, every = transforms.Features((jnp.array([[2.0], [2.0]]),), jnp.float32(0)), jnp.ones(2, bool)
        >>> transforms.scale()(jax.random.key(0), features, every, every).factors[0].tolist()
        [[1.0], [1.0]]
    """

    def transform(key: Array, features: Features, labelled: Array, counted: Array) -> Features:
        rows = jnp.where(jnp.any(labelled), labelled, counted)
        mean = jnp.sum(jnp.where(rows, trace(features), 0.0)) / jnp.maximum(jnp.sum(rows, dtype=jnp.float32), 1.0)
        factor = jnp.where(mean > 0, 1.0 / jnp.where(mean > 0, mean, 1.0), 1.0)
        first, *others = features.factors
        return features._replace(factors=(first * jnp.sqrt(factor), *others), noise=features.noise * factor)

    return transform


def centre() -> Transform:
    """Subtract the mean feature of the rows that count, from plain features ``[N, D]``."""

    def transform(key: Array, features: Features, labelled: Array, counted: Array) -> Features:
        dense(features, "transforms.centre")
        return centred(features, counted)

    return transform


def normalise() -> Transform:
    """Divide the features of every example by their length, so that inner products are cosines."""
    return lambda key, features, labelled, counted: features._replace(factors=tuple(map(unit_rows, features.factors)))


def sketch(size: int = 512) -> Transform:
    r"""Random projection to ``size`` dimensions; inner products stay the same in expectation.

    .. math:: \phi'(x) = \tfrac1{\sqrt K}\, (U_1^\top \phi_1(x)) \odot \dots \odot (U_F^\top \phi_F(x)),
              \qquad U \sim \mathcal N(0, 1)

    A product of factors becomes plain features without being formed. The projection is a new one in every round.

    Args:
        size: ``K``.

    Example:
        >>> features = transforms.Features((jnp.ones((2, 3)), jnp.ones((2, 5))), jnp.float32(0))
        >>> every = jnp.ones(2, bool)
        >>> [part.shape for part in transforms.sketch(4)(jax.random.key(0), features, every, every).factors]
        [(2, 4)]
    """
    size = checks.positive_int("size", size)
    return lambda key, features, labelled, counted: features._replace(factors=(sketched(features.factors, size, key),))


def posterior(noise: float = 1.0) -> Transform:
    r"""The Gaussian-process posterior given what is labelled, of plain features ``[N, D]``.

    .. math:: k(x, x' \mid L) = \phi(x)^\top A^{-1} \phi(x'), \qquad
              A = I + \sigma^{-2} \sum_{i \in L} \phi_i \phi_i^\top

    Args:
        noise: ``σ``, the standard deviation of observation noise.

    Example:
        >>> features = transforms.Features((jnp.array([[2.0], [1.0]]),), jnp.float32(0))
        >>> labelled = jnp.array([True, False])
        >>> after = transforms.posterior(noise=1.0)(jax.random.key(0), features, labelled, jnp.ones(2, bool))
        >>> [f"{row[0] ** 2:.1f}" for row in after.factors[0]]
        ['0.8', '0.2']
    """
    noise = checks.positive_float("noise", noise)
    return lambda key, features, labelled, counted: conditioned(features, labelled, noise, "transforms.posterior")


def predictive(noise: float = 1.0) -> Transform:
    """Add the variance of observation noise to the diagonal: the covariance of labels, not of function values.

    Args:
        noise: ``σ``, its standard deviation.

    Example:
        >>> features, every = transforms.Features((jnp.array([[2.0], [1.0]]),), jnp.float32(0)), jnp.ones(2, bool)
        >>> float(transforms.predictive(noise=2.0)(jax.random.key(0), features, every, every).noise)
        4.0
    """
    noise = checks.positive_float("noise", noise)
    return lambda key, features, labelled, counted: features._replace(noise=features.noise + jnp.float32(noise) ** 2)
