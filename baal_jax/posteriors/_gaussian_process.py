"""Exact Gaussian processes: a posterior without training."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, linalg, meshes, numerics
from baal_jax.posteriors.kernels import Kernel
from baal_jax.training import tasks
from baal_jax.typing import Array, Dataset, Key, Posterior, PyTree, short

product = linalg.product
_MOST_LABELLED = 2048
_EPSILON = 2.0**-23  # what float32 tells from one
_SCALES = 4.0 ** np.array([0, -2, -1, 1, 2, 3, 4, 5])  # without labels the first is taken
_NOISES = 2.0 ** np.arange(-6, 1)
_MOST_HALVINGS = 4  # of the capacity, down to where labels fit in


class GaussianProcessState(NamedTuple):
    """What a Gaussian process has seen, with a capacity for ``L`` examples. ``E`` is 1 where outputs share their noise.

    Attributes:
        inputs: ``[L, …]``, the labelled ones first.
        known: ``bool[L]``, where there is one.
        targets: ``float32[L, C]``, beyond ``mean``; zero where nothing is known.
        noise: ``float32[E, L]``, variance of the noise in them.
        cholesky: ``float32[E, L, L]``, lower factors of covariance plus noise.
        mean: ``float32[]``, prior mean of all outputs.
        scale: ``float32[]``, factor of the kernel.
        log_evidence: ``float32[]``, log marginal likelihood of the known targets.
        features: parameters of the random features.
        unit: ``float32[]``, what the inputs here and all others are divided by, 1 unless the kernel reads it off them.
    """

    inputs: Array
    known: Array
    targets: Array
    noise: Array
    cholesky: Array
    mean: Array
    scale: Array
    log_evidence: Array
    features: PyTree
    unit: Array
    __repr__ = short


def gaussian_process(
    kernel: Kernel,
    *,
    num_classes: int | None = None,
    scale: float | None = None,
    noise: float | None = None,
    alpha: float = 1e-3,
    max_labelled: int | None = None,
    num_features: int = 1024,
) -> Posterior:
    r"""Gaussian-process regression or classification, exact on the labelled set, with draws that are functions.

    Without ``num_classes`` targets are real values, seen with noise of variance :math:`\sigma^2`, under a prior of mean
    zero: standardise them. With ``num_classes`` every class has a process of its own, on the logarithm of a Gamma
    variable, as it comes from a Dirichlet distribution that has seen one label,

    .. math:: \alpha_c = \alpha_\epsilon + [y = c], \qquad \sigma_c^2 = \log(1/\alpha_c + 1), \qquad
              \tilde y_c = \log \alpha_c - \sigma_c^2 / 2

    and whose values are logits. The prior mean is that of :math:`\tilde y` over the classes, so none is favoured.

    A draw is the prior function of random features, moved to agree with the labels (Matheron's rule):

    .. math:: f(x) = \phi(x)^\top w + k(x, X) (K + \Sigma)^{-1} (y - \Phi w - \varepsilon), \qquad
              w \sim \mathcal{N}(0, I), \quad \varepsilon \sim \mathcal{N}(0, \Sigma)

    The move is exact and the mean of the draws with it; the covariances of the prior have an error, the same for all
    draws, that falls as ``1/√num_features``. For exact moments see :func:`gaussian_process_moments`.

    Hyperparameters that are not given are those of the largest marginal likelihood on a grid,

    .. math:: \log p(y) = -\tfrac12 \sum_c \bigl( \tilde y_c^\top (s K + \Sigma_c)^{-1} \tilde y_c
              + \log\det(s K + \Sigma_c) + n \log 2\pi \bigr)

    Args:
        kernel: from :mod:`baal_jax.posteriors.kernels`, or your own :class:`~baal_jax.posteriors.kernels.Kernel`.
        num_classes: ``C`` for targets that are classes, None for real values ``[N]`` or ``[N, C]``.
        scale: :math:`s`, factor of the kernel; None tries the powers of 4 from 1/16 to 1,024, a Cholesky factor each.
        noise: :math:`\sigma`, standard deviation of real-valued targets around the function; None chooses among the
            powers of 2 from 1/64 to 1. Rounding of float32 adds ``1e-7`` of the trace of ``K`` to the variance.
        alpha: :math:`\alpha_\epsilon`, concentration before any label. The smaller, the more confident of its labels.
        max_labelled: ``L``, capacity, by default all of the data set up to 2,048. Memory grows with ``L²`` and classes;
            factors are of as many halves of it as hold the labels, down to an eighth.
        num_features: size of the random features.

    Returns:
        A :class:`~baal_jax.Posterior` whose state is a :class:`GaussianProcessState` and whose outputs are ``[B, C]``.
        With nothing labelled the draws are of the prior. Unknown targets (negative classes, a NaN anywhere in a row) do
        not count. More labels than ``max_labelled`` and classes beyond ``num_classes`` give NaN in compiled code.

    Raises:
        ValueError: an argument is out of its range; in ``fit``, the targets do not fit ``num_classes``, or, outside of
            compiled code, more is labelled than ``max_labelled``.

    References:
        Milios et al., `Dirichlet-based Gaussian processes for large-scale calibrated classification
        <https://arxiv.org/abs/1805.10915>`_, 2018. Wilson et al., `Efficiently sampling functions from Gaussian process
        posteriors <https://arxiv.org/abs/2002.09309>`_, 2020.

    Example:
        >>> posterior = baal.posteriors.gaussian_process(kernels.dense(2), num_classes=2, num_features=64)
    """
    num_classes = None if num_classes is None else checks.positive_int("num_classes", num_classes, 2)
    scale = None if scale is None else checks.positive_float("scale", scale)
    noise, alpha = checks.noise(noise), checks.positive_float("alpha", alpha)
    most = checks.optional_int("max_labelled", max_labelled) or _MOST_LABELLED
    num_features = checks.positive_int("num_features", num_features)
    scales = _SCALES if scale is None else np.array([scale])
    # In classification the variances of the pseudo-targets are given, and noise is one.
    noises = np.ones(1) if num_classes is not None else _NOISES if noise is None else np.array([noise])

    @jax.jit
    def compiled_fit(key: Key, dataset: Dataset, labelled: Array) -> GaussianProcessState:
        size = min(labelled.shape[0], most)
        ids_of, count = numerics.true_rows(labelled)
        inputs, targets = (leaf[ids_of(jnp.arange(size, dtype=jnp.int32))] for leaf in dataset)
        parts = _values(targets) if num_classes is None else _log_gammas(targets, num_classes, alpha)
        targets, given, known, mean = parts
        known &= jnp.arange(size, dtype=jnp.int32) < count
        unit = jnp.ones((), jnp.float32)
        if kernel.unit is not None:
            unit = kernel.unit(inputs, known)
            inputs = inputs.astype(jnp.float32) / unit
        targets, params = jnp.where(known[:, None], targets - mean, 0.0), kernel.init(key, inputs[:1], num_features)
        choices = jnp.asarray(np.stack(np.meshgrid(scales, noises), -1).reshape(-1, 2), jnp.float32)

        def conditioned(rows: int) -> tuple:
            # Rows of nothing known become those of a unit matrix: factor one, target zero, no part in the rest.
            there = known[:rows]
            covariance = jnp.where(there[:, None] & there[None], kernel.gram(inputs[:rows], inputs[:rows]), 0.0)

            def at(scale: Array, noise: Array) -> tuple[Array, Array, Array]:
                scaled = scale * covariance
                rounding = _EPSILON * jnp.trace(scaled)  # factors of smaller eigenvalues would be noise, or NaN
                variances = jnp.where(there[None], given[:, :rows] * noise**2 + rounding, 1.0)
                cholesky = jax.vmap(linalg.cholesky)(scaled[None] + jax.vmap(jnp.diag)(variances))
                return variances, cholesky, _log_evidence(cholesky, targets[:rows], there)

            best = choices[0]
            if len(choices) > 1:  # one after the other: a factor of L² numbers for every class is held at a time
                evidence = jax.lax.map(lambda choice: at(*choice)[2], choices)
                best = choices[jnp.argmax(jnp.where(jnp.isnan(evidence), -jnp.inf, evidence))]
            variances, cholesky, log_evidence = at(*best)
            variances = jnp.pad(variances, ((0, 0), (0, size - rows)), constant_values=1.0)
            whole = jnp.broadcast_to(jnp.eye(size, dtype=cholesky.dtype), (len(cholesky), size, size))
            return variances, whole.at[:, :rows, :rows].set(cholesky), mean, best[0], log_evidence, params, unit

        # Factors grow with the third power of their rows, so few labels of a large capacity are worth a program each.
        rows = sorted({-(-size // 2**halvings) for halvings in range(_MOST_HALVINGS)})
        place = jnp.sum(numerics.largest(count) > jnp.asarray(rows[:-1], jnp.int32), dtype=jnp.int32)
        rest = jax.lax.switch(place, [partial(conditioned, number) for number in rows])
        targets = jnp.where(count > size, jnp.nan, targets)
        return GaussianProcessState(inputs, known, targets, *rest)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: Any = None) -> GaussianProcessState:
        num_examples = checks.leading_axis("dataset", dataset)
        if labelled.shape != (num_examples,):
            raise ValueError(f"labelled has shape {labelled.shape}, but must have one entry for each of {num_examples}")
        if checks.is_concrete(labelled) and (count := int(np.sum(meshes.on_host(labelled)))) > most:
            raise ValueError(f"max_labelled={most}, but {count} examples are labelled: raise it")
        return compiled_fit(key, dataset, labelled)

    features = lambda state, inputs: jnp.sqrt(state.scale) * kernel.features(state.features, inputs)  # noqa: E731

    def sample(key: Key, state: GaussianProcessState, num_samples: int) -> tuple[Array, Array]:
        phi = features(state, state.inputs)

        def one(key: Key) -> tuple[Array, Array]:
            key_prior, key_noise = jax.random.split(key)
            prior = jax.random.normal(key_prior, (phi.shape[1], state.targets.shape[1]), phi.dtype)
            noise = jax.random.normal(key_noise, state.targets.shape, phi.dtype) * jnp.sqrt(state.noise).T
            # Matheron's rule: a prior function, and what moves it from noisy values of its own to the ones seen.
            return prior, jnp.where(state.known[:, None], state.targets - noise - product(phi, prior), 0.0)

        prior, missing = jax.vmap(one, out_axes=(0, -1))(jax.random.split(key, num_samples))
        update = _solve(state, missing.reshape(len(missing), -1))  # all draws of an output at once, by its one factor
        return prior, jnp.moveaxis(update.reshape(missing.shape), -1, 0)

    def apply(state: GaussianProcessState, draw: tuple[Array, Array], inputs: Array) -> Array:
        prior, update = draw  # weights [D, C] of the features, [L, C] of the covariances with labelled inputs
        inputs = _in_units(kernel, state, inputs)
        prior = product(features(state, inputs), prior)
        return state.mean + prior + product(state.scale * kernel.gram(inputs, state.inputs), update)

    return tasks.guarded(fit, sample, apply, tasks.regression if num_classes is None else tasks.classification)


def gaussian_process_moments(kernel: Kernel, state: GaussianProcessState, inputs: Array) -> tuple[Array, Array]:
    r"""Mean and variance of the functions that a Gaussian process holds possible, exactly, without draws.

    .. math:: \mu(x) = m + k(x, X) (K + \Sigma)^{-1} (y - m), \qquad v(x) = k(x, x) - k(x, X) (K + \Sigma)^{-1} k(X, x)

    Args:
        kernel: the one that :func:`gaussian_process` was made of.
        state: what its ``fit`` returned.
        inputs: ``[B, …]``.

    Returns:
        ``(mean float32[B, C], variance float32[B, C])``, the variance without noise.

    Example:
        >>> kernel = kernels.rbf(1.0)
        >>> posterior = posteriors.gaussian_process(kernel, scale=1.0, noise=0.1)
        >>> train = baal.Dataset(jnp.array([[0.0], [9.0]]), jnp.array([1.0, 0.0]))
        >>> state = posterior.fit(jax.random.key(0), train, jnp.array([True, False]))
        >>> [part.shape for part in jax.tree.leaves(posteriors.gaussian_process_moments(kernel, state, train.inputs))]
        [(2, 1), (2, 1)]
    """
    inputs = _in_units(kernel, state, inputs)
    covariance = jnp.where(state.known[None], state.scale * kernel.gram(inputs, state.inputs), 0.0)
    mean = state.mean + product(covariance, _solve(state, state.targets))
    whitened = jax.vmap(lambda factor: linalg.solve_triangular(factor, covariance.T, lower=True))(state.cholesky)
    variance = state.scale * kernel.diagonal(inputs)[:, None] - jnp.sum(whitened**2, axis=1).T
    return mean, jnp.broadcast_to(jnp.maximum(variance, 0.0), mean.shape)


def _in_units(kernel: Kernel, state: GaussianProcessState, inputs: Array) -> Array:
    return inputs if kernel.unit is None else inputs.astype(jnp.float32) / state.unit


def _log_evidence(cholesky: Array, targets: Array, known: Array) -> Array:
    """Of targets ``[L, C]`` under factors ``[E, L, L]``; what is not known has factor one and target zero."""
    num_outputs, kinds = targets.shape[1], cholesky.shape[0]
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky, axis1=1, axis2=2))) * (num_outputs // kinds)
    count = num_outputs * jnp.sum(known, dtype=jnp.float32)
    return -0.5 * (jnp.sum(_whitened(cholesky, targets) ** 2) + log_det + math.log(2 * math.pi) * count)


def _values(targets: Array) -> tuple[Array, Array, Array, Array]:
    """Targets ``[L, C]``, variance of the noise in them ``[E, L]``, where they are known ``[L]``, prior mean ``[]``."""
    if not jnp.issubdtype(targets.dtype, jnp.floating) or targets.ndim > 2:
        cure = "but without num_classes real values are needed: give num_classes"
        raise ValueError(f"targets are {targets.dtype}{targets.shape}, {cure}")
    targets = targets.reshape(targets.shape[0], -1).astype(jnp.float32)
    known = ~jnp.isnan(targets).any(axis=1)
    return targets, jnp.ones((1, targets.shape[0]), jnp.float32), known, jnp.zeros((), jnp.float32)


def _log_gammas(targets: Array, num_classes: int, alpha: float) -> tuple[Array, Array, Array, Array]:
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.ndim != 1:
        cure = f"but num_classes={num_classes} needs integers: leave it out"
        raise ValueError(f"targets are {targets.dtype}{targets.shape}, {cure}")
    # One row more, of class 0, for the prior mean: that of a labelled row, the same whatever its class.
    concentration = alpha + jax.nn.one_hot(jnp.append(targets, 0), num_classes, dtype=jnp.float32)
    variance = jnp.log1p(1.0 / concentration)
    values = jnp.log(concentration) - variance / 2
    centre, values = jnp.mean(values[-1]), jnp.where((targets < num_classes)[:, None], values[:-1], jnp.nan)
    return values, variance[:-1].T, targets >= 0, centre


def _solve(state: GaussianProcessState, values: Array) -> Array:
    """``(K + Σ)⁻¹ values`` for ``[L, C]``, with the noise of each output."""
    back = jax.vmap(partial(linalg.solve_triangular, lower=True, trans="T"))
    return back(state.cholesky, _whitened(state.cholesky, values)).transpose(1, 0, 2).reshape(values.shape)


def _whitened(cholesky: Array, values: Array) -> Array:
    """``L⁻¹ values`` for ``[L, C]``, as ``[E, L, C / E]``, by the factor that the outputs share."""
    values = values.reshape(len(values), len(cholesky), -1).transpose(1, 0, 2)
    return jax.vmap(partial(linalg.solve_triangular, lower=True))(cholesky, values)
