r"""Covariance functions: the squared exponential, and those of infinitely wide networks before training (NNGP).

As layers of Gaussian weights grow wide, outputs become a Gaussian process, whose covariance follows layer by layer:

.. math:: K^{\ell+1}(x, x') = \sigma_b^2 + \sigma_w^2 \,
          \mathrm{E}\bigl[\phi(u)\,\phi(u')\bigr], \qquad (u, u') \sim \mathcal{N}(0, K^\ell)

:func:`~baal_jax.posteriors.gaussian_process` turns one into a posterior. Wrong options and inputs raise ``ValueError``.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, linalg

_product = linalg.product
_MAX_ELEMENTS = 2**24  # of what a Gram matrix is computed from, at a time


class Kernel(NamedTuple):
    """A covariance function, and random features of it.

    Attributes:
        gram: ``(x1 [N, …], x2 [M, …]) -> float32[N, M]``, covariances of all pairs.
        diagonal: ``x [N, …] -> float32[N]``, variances.
        init: ``(key, x [1, …], num_features) -> params``, for ``features``; of ``x`` only the shape counts.
        features: ``(params, x [N, …]) -> float32[N, D]`` whose inner products have the variances of the kernel exactly
            and its other covariances nearly, with an error that falls as ``1/√num_features``.
        unit: ``(x [L, …], known bool[L]) -> float32[]``, by which inputs are divided first; None for 1.
    """

    gram: Callable[[Array, Array], Array]
    diagonal: Callable[[Array], Array]
    init: Callable[[Array, Array, int], Any]
    features: Callable[[Any, Array], Array]
    unit: Callable[[Array, Array], Array] | None = None


def rbf(length_scale: float | None = None) -> Kernel:
    r"""The squared-exponential kernel (RBF), :math:`\exp(-\|x - x'\|^2 / 2\ell^2)`, for features such as embeddings.

    Args:
        length_scale: :math:`\ell`; None for the root of half the mean squared distance of labelled inputs.

    Returns:
        A :class:`Kernel` of inputs ``[N, …]``, which are flattened, with Fourier features (Rahimi and Recht 2007).

    Example:
        >>> print(rbf(1.0).gram(jnp.zeros((1, 2)), jnp.array([[0.0, 0.0], [1.0, 1.0]])))
        [[1.         0.36787945]]
    """
    scale = 1.0 if length_scale is None else checks.positive_float("length_scale", length_scale)
    flat = lambda x: _float(x).reshape(x.shape[0], -1) / scale  # noqa: E731

    def gram(x1: Array, x2: Array) -> Array:
        centre = jnp.mean(flat(x2), axis=0, keepdims=True)
        x1, x2 = flat(x1) - centre, flat(x2) - centre
        inner = _product(x1, x2.T) - (jnp.sum(x1**2, axis=1)[:, None] + jnp.sum(x2**2, axis=1)[None]) / 2
        return jnp.exp(jnp.minimum(inner, 0.0))

    def init(key: Array, x: Array, num_features: int) -> Array:
        return jax.random.normal(key, (flat(x).shape[1], max(num_features // 2, 1)), jnp.float32)

    def features(params: Array, x: Array) -> Array:
        angles = _product(flat(x), _float(params))
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1) / math.sqrt(params.shape[1])

    def unit(x: Array, known: Array) -> Array:
        shares = known.astype(jnp.float32) / jnp.maximum(jnp.sum(known, dtype=jnp.float32), 1.0)
        variance = _product(shares, jnp.sum((flat(x) - _product(shares, flat(x))[None]) ** 2, axis=1))
        return jnp.sqrt(jnp.where(variance > 0, variance, float(flat(x).shape[1])))

    ones = lambda x: jnp.ones(x.shape[0], jnp.float32)  # noqa: E731
    return Kernel(gram, ones, init, features, unit if length_scale is None else None)


def dense(depth: int, *, activation: str = "relu", weight_std: float = math.sqrt(2.0), bias_std: float = 0.1) -> Kernel:
    r"""The kernel of a fully connected network of infinite width.

    .. math:: K^0(x, x') = \sigma_b^2 + \sigma_w^2\, x^\top x' / D

    and then ``depth`` hidden layers. With ``"relu"``, for the angle :math:`\theta` of two inputs (arc-cosine kernel),

    .. math:: \mathrm{E}[\phi\phi'] = \frac{\sqrt{K_{xx} K_{x'x'}}}{2\pi}
              \bigl(\sin\theta + (\pi - \theta)\cos\theta\bigr)

    and with ``"erf"``

    .. math:: \mathrm{E}[\phi\phi'] = \frac2\pi \arcsin \frac{2 K_{xx'}}{\sqrt{(1 + 2K_{xx})(1 + 2K_{x'x'})}}

    Args:
        depth: number of hidden layers; 0 is a linear model.
        activation: ``"relu"`` or ``"erf"``.
        weight_std: :math:`\sigma_w`; the default keeps variances of ``"relu"`` layers as they are, up to the biases.
        bias_std: :math:`\sigma_b`.

    Returns:
        A :class:`Kernel` of inputs ``[N, …]``, which are flattened to ``[N, D]``.

    References:
        Lee et al., `Deep neural networks as Gaussian processes <https://arxiv.org/abs/1711.00165>`_, 2018. Cho and
        Saul, `Kernel methods for deep learning
        <https://papers.nips.cc/paper/3628-kernel-methods-for-deep-learning>`_, 2009. Williams, `Computing with
        infinite networks <https://papers.nips.cc/paper/1197-computing-with-infinite-networks>`_, 1996.

    Example:
        >>> dense(2, activation="erf").gram(jnp.ones((3, 4)), jnp.zeros((5, 4))).shape
        (3, 5)
    """
    depth = checks.positive_int("depth", depth, 0)
    layer = _Layer(activation, weight_std, bias_std)
    flat = lambda x: _float(x).reshape(x.shape[0], -1)  # noqa: E731
    # Of the inputs of every layer, and of the output.
    variances = lambda x: layer.variances(jnp.mean(flat(x) ** 2, axis=1), depth + 1, layer.affine)  # noqa: E731

    def gram(x1: Array, x2: Array) -> Array:
        covariance = layer.affine(_product(flat(x1), flat(x2).T) / flat(x1).shape[1])
        for v1, v2 in zip(variances(x1)[:-1], variances(x2)[:-1], strict=True):
            covariance = layer.affine(layer.covariance(covariance, v1[:, None], v2[None]))
        return covariance

    def init(key: Array, x: Array, num_features: int) -> list[tuple[Array, Array]]:
        sizes = [flat(x).shape[1], *[num_features] * depth]
        keys = jax.random.split(key, max(depth, 1))
        return [layer.weights(k, shape) for k, shape in zip(keys, itertools.pairwise(sizes), strict=False)]

    def features(params: list[tuple[Array, Array]], x: Array) -> Array:
        hidden = flat(x)
        for weights, bias in jax.tree.map(_float, params):
            hidden = layer.function(_product(hidden, weights) + bias[None])
        return layer.readout(hidden, hidden.shape[1], variances(x)[-1])

    return Kernel(gram, lambda x: variances(x)[-1], init, features)


def convolutional(
    depth: int,
    filter_size: int | Sequence[int] = 3,
    *,
    activation: str = "relu",
    weight_std: float = math.sqrt(2.0),
    bias_std: float = 0.1,
) -> Kernel:
    r"""The kernel of a convolutional network with infinitely many channels, whose last activations are flattened.

    Filters see the input surrounded by zeros, so every layer has as many positions. Between layers covariances of a
    position :math:`p` are averaged over the filter, with offsets :math:`\delta`,

    .. math:: K^{\ell+1}_p = \sigma_b^2 + \frac{\sigma_w^2}{|\Delta|} \sum_{\delta \in \Delta}
              \mathrm{E}\bigl[\phi(u_{p+\delta})\,\phi(u'_{p+\delta})\bigr]

    and at the end over all positions: only those at the same position matter. Expectations are those of :func:`dense`.

    Args:
        depth: number of convolutional layers.
        filter_size: side of the filters, one number or one a spatial axis.
        activation: ``"relu"`` or ``"erf"``.
        weight_std: :math:`\sigma_w`.
        bias_std: :math:`\sigma_b`.

    Returns:
        A :class:`Kernel` of inputs ``[N, spatial…, channels]``. Its ``features`` are those of a network of
        ``num_features`` channels, so they cost its square: a few hundred are plenty.

    References:
        Novak et al., `Bayesian deep convolutional networks with many channels are Gaussian processes
        <https://arxiv.org/abs/1810.05148>`_, 2019.

    Example:
        >>> convolutional(2, 3).gram(jnp.ones((3, 8, 8, 1)), jnp.zeros((5, 8, 8, 1))).shape
        (3, 5)
    """
    depth = checks.positive_int("depth", depth)
    sides = [filter_size] if isinstance(filter_size, int) else list(filter_size)
    sides = [checks.positive_int("filter_size", side) for side in sides]
    layer = _Layer(activation, weight_std, bias_std)

    def windows(x: Array) -> tuple[int, ...]:
        spatial = x.ndim - 2
        if spatial < 1 or len(sides) not in (1, spatial):
            raise ValueError(f"inputs have shape {x.shape}: [N, spatial…, channels] must fit filter_size={filter_size}")
        return tuple(sides * spatial if len(sides) == 1 else sides)

    convolve = lambda x: lambda covariance: layer.affine(_window_mean(covariance, windows(x)))  # noqa: E731
    # Before every activation, [N, spatial…].
    variances = lambda x: layer.variances(jnp.mean(x**2, axis=-1), depth, convolve(x))  # noqa: E731
    read = lambda covariance, spatial: layer.affine(jnp.mean(covariance, axis=tuple(range(-spatial, 0))))  # noqa: E731

    def diagonal(x: Array) -> Array:
        last = variances(_float(x))[-1]
        return read(layer.covariance(last, last, last), x.ndim - 2)

    def gram(x1: Array, x2: Array) -> Array:
        x1, x2 = _float(x1), _float(x2)
        variances2, convolved = variances(x2), convolve(x2)

        def row(x: Array) -> Array:  # one example with all of x2
            covariance = jnp.mean(x[None] * x2, axis=-1)
            for v1, v2 in zip(variances(x[None]), variances2, strict=True):
                covariance = layer.covariance(convolved(covariance), v1, v2)
            return read(covariance, x2.ndim - 2)

        rows = max(1, _MAX_ELEMENTS // max(x2.size, 1))
        return jax.vmap(row)(x1) if x1.shape[0] <= rows else jax.lax.map(row, x1, batch_size=rows)

    def init(key: Array, x: Array, num_features: int) -> tuple[list[tuple[Array, Array]], Array]:
        key_signs, *keys = jax.random.split(key, depth + 1)
        channels = itertools.pairwise([x.shape[-1], *[num_features] * depth])
        layers = [layer.weights(k, (*windows(x), *pair)) for k, pair in zip(keys, channels, strict=True)]
        return layers, jax.random.rademacher(key_signs, (*x.shape[1:-1], num_features), jnp.float32)

    def features(params: tuple[list[tuple[Array, Array]], Array], x: Array) -> Array:
        layers, signs = jax.tree.map(_float, params)
        hidden = _float(x)
        for weights, bias in layers:
            hidden = layer.function(_convolution(hidden, weights) + jnp.expand_dims(bias, range(x.ndim - 1)))
        # One random sum over the positions of each channel: in expectation over signs, products of positions vanish.
        return layer.readout(jnp.einsum("n...c,...c->nc", hidden, signs, precision="highest"), signs.size, diagonal(x))

    return Kernel(gram, diagonal, init, features)


class _Layer:
    """A wide layer of random weights: the spread of these and of the biases, and the activation before it."""

    def __init__(self, activation: str, weight_std: float, bias_std: float) -> None:
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r} must be one of {', '.join(map(repr, _ACTIVATIONS))}")
        self.function, self.covariance = _ACTIVATIONS[activation]  # φ, and (K, K_xx, K_x'x') -> E[φ(u)φ(u')]
        self.weight_std = checks.finite_float("weight_std", weight_std, 0.0)
        self.bias_std = checks.finite_float("bias_std", bias_std, 0.0)

    def affine(self, covariance: Array) -> Array:
        return self.bias_std**2 + self.weight_std**2 * covariance

    def variances(self, squares: Array, count: int, affine: Callable[[Array], Array]) -> list[Array]:
        """What becomes of the mean squares of inputs in each of ``count`` layers."""
        variances = [affine(squares)]
        while len(variances) < count:
            variances.append(affine(self.covariance(variances[-1], variances[-1], variances[-1])))
        return variances

    def weights(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Weights ``[…, inputs, outputs]`` and biases ``[outputs]``."""
        key_weights, key_bias = jax.random.split(key)
        spread = self.weight_std / math.sqrt(math.prod(shape[:-1]))
        weights = spread * jax.random.normal(key_weights, shape, jnp.float32)
        return weights, self.bias_std * jax.random.normal(key_bias, shape[-1:], jnp.float32)

    def readout(self, hidden: Array, terms: int, variance: Array) -> Array:
        """Features whose inner products are covariances after a last affine layer, with exact variances."""
        hidden = hidden * (self.weight_std / math.sqrt(terms))
        features = jnp.concatenate([hidden, jnp.full((hidden.shape[0], 1), self.bias_std, hidden.dtype)], axis=1)
        # Scaled to the length that the kernel gives them: what is left of the error is in the angles.
        norm = jnp.sum(features**2, axis=1)
        return features * jnp.sqrt(variance / jnp.where(norm > 0, norm, 1.0))[:, None]


@jax.custom_jvp
def _arc_cosine(cosine: Array) -> Array:
    sine = jnp.sqrt((1.0 - cosine) * (1.0 + cosine))
    return sine + (math.pi - jnp.arctan2(sine, cosine)) * cosine


@_arc_cosine.defjvp
def _arc_cosine_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (cosine,), (tangent,) = primals, tangents
    # The infinite slopes of sine and angle at equal inputs cancel; automatically they would be NaN.
    return _arc_cosine(cosine), (math.pi - jnp.arccos(cosine)) * tangent


def _relu_covariance(covariance: Array, variance1: Array, variance2: Array) -> Array:
    norm = jnp.sqrt(jnp.maximum(variance1, 1e-30)) * jnp.sqrt(jnp.maximum(variance2, 1e-30))
    return norm * _arc_cosine(jnp.clip(covariance / norm, -1.0, 1.0)) / (2.0 * math.pi)


def _erf_covariance(covariance: Array, variance1: Array, variance2: Array) -> Array:
    norm = jnp.sqrt(1.0 + 2.0 * variance1) * jnp.sqrt(1.0 + 2.0 * variance2)
    return jnp.arcsin(jnp.clip(2.0 * covariance / norm, -1.0, 1.0)) * (2.0 / math.pi)


_ACTIVATIONS = {"relu": (jax.nn.relu, _relu_covariance), "erf": (jax.scipy.special.erf, _erf_covariance)}


def _float(x: Array) -> Array:
    return jnp.asarray(x).astype(jnp.float32)


def _window_mean(x: Array, sides: tuple[int, ...]) -> Array:
    """Mean over windows of the last axes, zeros around."""
    window = (1,) * (x.ndim - len(sides)) + sides
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1,) * x.ndim, "SAME") / math.prod(sides)


def _convolution(x: Array, weights: Array) -> Array:
    axes = "".join(chr(ord("a") + i) for i in range(x.ndim - 2))
    layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    strides = (1,) * len(axes)
    return jax.lax.conv_general_dilated(x, weights, strides, "SAME", dimension_numbers=layout, precision="highest")
