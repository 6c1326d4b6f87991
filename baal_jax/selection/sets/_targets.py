"""Selectors toward target inputs, those whose predictions matter, by a Gaussian process: ITL, VTL, EPIG of batches.

They are for a :func:`~baal_jax.selection.grid` over plain features ``[N, D]`` whose inner products are covariances, of
the order of 1 (``transforms.scale()``), and refuse predictions without targets, and noise that is not positive, with a
``ValueError``.
"""

from typing import Any

import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.selection._common import best_of, one_by_one
from baal_jax.selection.sets._bait import bait
from baal_jax.selection.sets._kernel import Features, Selector, conditioned, pivoted, target_rows
from baal_jax.typing import Array, Key

_Pivoted = tuple[Array, Array]  # variances and factor


def itl(noise: float = 0.1, *, use_labelled: bool = True) -> Selector:
    r"""Information about all targets together (ITL): the most of the mutual information of labels and targets.

    .. math:: \arg\max_x\; \tfrac12 \log \frac{k_P(x, x) + \sigma^2}{k_{P \cup A}(x, x) + \sigma^2}

    of variances given what is labelled and picked, and given noisy values at the targets ``A`` besides.

    Args:
        noise: ``σ``, standard deviation of observation noise.
        use_labelled: whether the process is conditioned on what is labelled.

    Returns:
        A selector; scores are the gains in nats.

    References:
        Hübotter et al., `Transductive active learning: theory and applications <https://arxiv.org/abs/2402.15898>`_,
        2024.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [1.0], [5.0], [9.0]]),), jnp.float32(0))
        >>> pool = jnp.array([True, True, True, False])  # the last row is a target
        >>> selectors.itl()(jax.random.key(0), line._replace(num_targets=1), pool, 1, jnp.zeros(4, bool))[0].tolist()
        [2]
    """
    noise = checks.positive_float("noise", noise)

    def select(key: Key, features: Features, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        before = _prior(features, labelled & use_labelled, noise, "selectors.itl")
        both = before, conditioned(before, target_rows(features, "selectors.itl"), noise, "selectors.itl")
        states, updates = zip(*[pivoted(_noisy(part, noise), query_size) for part in both], strict=True)

        def pick(states: tuple[_Pivoted, _Pivoted], left: Array, turn: Array) -> tuple[Array, Array]:
            (first, _), (second, _) = states
            gains = 0.5 * jnp.log(first / second)
            index = best_of(gains, left)
            return index, numerics.rows_at(gains, index)

        def update(states: Any, index: Array, turn: Array) -> Any:
            return tuple(more(state, index, turn) for more, state in zip(updates, states, strict=True))

        return one_by_one(pick, update, states, available, query_size)

    return _marked(select)


def vtl(noise: float = 0.1, *, use_labelled: bool = True) -> Selector:
    r"""The smallest sum of posterior variances at the targets (VTL): :func:`bait` toward them, forward alone.

    .. math:: \arg\min_x \sum_{a \in A} k_P(a, a) - \frac{k_P(a, x)^2}{k_P(x, x) + \sigma^2}

    Args:
        noise: as of :func:`itl`, with its paper.
        use_labelled: as of :func:`itl`.

    Returns:
        A selector; scores are how much the sum falls.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [1.0], [5.0], [9.0]]),), jnp.float32(0))
        >>> pool = jnp.array([True, True, True, False])  # the last row is a target
        >>> selectors.vtl()(jax.random.key(0), line._replace(num_targets=1), pool, 1, jnp.zeros(4, bool))[0].tolist()
        [2]
    """
    return bait(noise, use_labelled=use_labelled, oversampling=1.0, toward_targets=True)


def epig(noise: float = 0.1, *, use_labelled: bool = True) -> Selector:
    r"""Expected predictive information gain of a whole batch, exact for Gaussians: about each target on its own.

    .. math:: \arg\max_x \frac1M \sum_{a \in A} \tfrac12
              \log \frac{k_P(a, a) + \sigma^2}{k_{P \cup x}(a, a) + \sigma^2}

    The gains of a batch add up to its mean information about a noisy label at a target. Memory is ``N·M``.

    Args:
        noise: as of :func:`itl`.
        use_labelled: as of :func:`itl`.

    Returns:
        A selector; scores are the gains in nats.

    References:
        Bickford Smith et al., `Prediction-oriented Bayesian active learning <https://arxiv.org/abs/2304.08151>`_, 2023.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [1.0], [5.0], [9.0]]),), jnp.float32(0))
        >>> pool = jnp.array([True, True, True, False])  # the last row is a target
        >>> selectors.epig()(jax.random.key(0), line._replace(num_targets=1), pool, 1, jnp.zeros(4, bool))[0].tolist()
        [2]
    """
    noise = checks.positive_float("noise", noise)

    def select(key: Key, features: Features, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        prior = _prior(features, labelled & use_labelled, noise, "selectors.epig")
        targets, phi = slice(-features.num_targets, None), prior.factors[0]
        state, more = pivoted(_noisy(prior, noise), query_size)

        def pick(carry: tuple[_Pivoted, Array], left: Array, turn: Array) -> tuple[Array, Array]:
            (variances, _), shared = carry
            known = shared**2 / (variances[:, None] * variances[None, targets])
            gains = -0.5 * jnp.mean(jnp.log1p(-jnp.clip(known, 0.0, 1.0 - 1e-6)), axis=1)
            index = best_of(gains, left)
            return index, numerics.rows_at(gains, index)

        def update(carry: tuple[_Pivoted, Array], index: Array, turn: Array) -> tuple[_Pivoted, Array]:
            state, shared = more(carry[0], index, turn), carry[1]
            root = state[1][:, turn]
            return state, shared - root[:, None] * root[None, targets]

        shared = jnp.matmul(phi, phi[targets].T, precision="highest")
        return one_by_one(pick, update, (state, shared), available, query_size)

    return _marked(select)


def _marked(select: Selector) -> Selector:
    vars(select).update(reads_targets=True)
    return select


def _prior(features: Features, labelled: Array, noise: float, who: str) -> Features:
    """Conditioned on what is labelled; with targets, which are looked for here."""
    target_rows(features, who)
    return conditioned(features, labelled, noise, who)


def _noisy(features: Features, noise: float) -> Features:
    return features._replace(noise=features.noise + jnp.float32(noise) ** 2)
