"""Entropy of a label, its split into aleatoric and epistemic parts, and information about other predictions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, numerics

_BLOCK = 2**23  # numbers of the largest temporary array, 32 MiB


@numerics.on_logits
def entropy(logits: Array) -> Array:
    r"""Entropy of the mean prediction: the total uncertainty.

    .. math:: H[\bar p] = -\sum_c \bar p_c \log \bar p_c, \qquad \bar p = \tfrac1S \sum_s p_s

    Args:
        logits: ``[S, N, …, C]`` unnormalised log-probabilities, one array with ``C ≥ 2``, else a ``ValueError``.

    Returns:
        ``[N, …]`` scores in nats, between 0 and ``log C``.

    References:
        Shannon, `A mathematical theory of communication
        <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948.

    Example:
        >>> print(heuristics.entropy(jnp.zeros((20, 3, 2))))
        [0.6931472 0.6931472 0.6931472]
    """
    return numerics.entropy(numerics.log_mean_probs(logits))


@numerics.on_logits
def expected_entropy(logits: Array) -> Array:
    r"""Mean entropy of the draws: the aleatoric part, which more labels do not remove.

    .. math:: \mathbb E_s\, H[p_s] = -\tfrac1S \sum_s \sum_c p_{sc} \log p_{sc}

    Args:
        logits: ``[S, N, …, C]`` unnormalised log-probabilities, one array with ``C ≥ 2``, else a ``ValueError``.

    Returns:
        ``[N, …]`` scores in nats, between 0 and ``log C``.

    References:
        Depeweg et al., `Decomposition of uncertainty in Bayesian deep learning
        <https://arxiv.org/abs/1710.07283>`_, 2018.

    Example:
        >>> print(heuristics.expected_entropy(jnp.log(jnp.array([[[1.0, 0.0]], [[0.5, 0.5]]]))))
        [0.3465736]
    """
    return numerics.mean_over_log_probs(numerics.entropy, logits)


@numerics.on_logits
def bald(logits: Array) -> Array:
    r"""Bayesian active learning by disagreement: what a label would tell about the parameters.

    .. math:: I(y; \theta) = H[\bar p] - \mathbb E_s\, H[p_s] = \tfrac1S \sum_s \mathrm{KL}(p_s \,\|\, \bar p)

    The divergence is summed from terms that are never negative, so equal draws score exactly 0 and small scores keep
    their digits, where the difference of the two entropies would be rounding noise.

    Args:
        logits: ``[S, N, …, C]`` unnormalised log-probabilities, one array with ``C ≥ 2``, else a ``ValueError``.

    Returns:
        ``[N, …]`` scores in nats, between 0 and ``min(log S, log C)``.

    References:
        Houlsby et al., `Bayesian active learning for classification and preference learning
        <https://arxiv.org/abs/1112.5745>`_, 2011; Gal, Islam and Ghahramani, `Deep Bayesian active learning with image
        data <https://arxiv.org/abs/1703.02910>`_, 2017.

    Example:
        >>> certain = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))        # two draws, each confident of another class
        >>> print(heuristics.bald(certain[:, None]))
        [0.6931472]
    """
    log_mean = numerics.log_mean_probs(logits)
    return numerics.mean_over_log_probs(lambda log_p: _divergence(log_p, log_mean), logits)


class Uncertainty(NamedTuple):
    """Total, aleatoric and epistemic uncertainty, of one shape; the first is the sum of the other two.

    Attributes:
        total: of the label.
        aleatoric: what would be left if the parameters were known.
        epistemic: what the draws disagree about.
    """

    total: Array
    aleatoric: Array
    epistemic: Array


@numerics.on_logits
def uncertainty(logits: Array) -> Uncertainty:
    r"""Total, aleatoric and epistemic uncertainty: the entropy of a label, split by whether more labels remove it.

    .. math:: H[\bar p] = \mathbb E_s\, H[p_s] + I(y; \theta)

    Args:
        logits: ``[S, N, …, C]`` unnormalised log-probabilities, one array with ``C ≥ 2``, else a ``ValueError``.

    Returns:
        :class:`Uncertainty`, ``[N, …]`` nats each: :func:`entropy`, :func:`expected_entropy` (its paper), :func:`bald`.

    Example:
        >>> certain = jnp.log(jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]]))          # two draws that contradict each other
        >>> print(heuristics.uncertainty(certain).epistemic)
        [0.6931472]
    """
    log_mean = numerics.log_mean_probs(logits)
    both = lambda log_p: (numerics.entropy(log_p), _divergence(log_p, log_mean))  # noqa: E731
    return Uncertainty(numerics.entropy(log_mean), *numerics.mean_over_log_probs(both, logits))


@numerics.on_logits
def epig(logits: Array, target_logits: Array) -> Array:
    r"""Expected predictive information gain: what a label would tell about predictions that matter.

    .. math:: \mathbb E_{x_*} I(y; y_*) = \tfrac1M \sum_m \mathrm{KL}\bigl(p(y, y_m) \,\|\, p(y)\, p(y_m)\bigr),
              \qquad p(y, y_m) = \tfrac1S \sum_s p_s(y)\, p_s(y_m)

    Args:
        logits: ``[S, N, C]`` predictions on the candidates.
        target_logits: ``[S, M, C]`` predictions on the target inputs, under the same draws.

    Returns:
        ``[N]`` scores in nats, never above BALD.

    References:
        Bickford Smith et al., `Prediction-oriented Bayesian active learning <https://arxiv.org/abs/2304.08151>`_, 2023.

    Example:
        >>> certain = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))[:, None]
        >>> print(heuristics.epig(certain, certain))
        [0.6931472]
    """
    require_same_draws("logits", logits, target_logits)
    mean, lift = _mean_and_lift(logits)
    target_mean, target_lift = _mean_and_lift(target_logits)
    num_draws, num_examples, num_classes = lift.shape
    rows = jnp.moveaxis(lift, 0, -1).reshape(-1, num_draws)
    columns, weights = target_lift.reshape(num_draws, -1), target_mean.reshape(-1)
    # Blocks of label pairs: one product each. Targets do not grow memory, and thinner than S a product is all reading.
    size = min(columns.shape[1], max(num_draws, _BLOCK // max(rows.shape[0], 1)))
    padding = -columns.shape[1] % size
    columns = jnp.pad(columns, ((0, 0), (0, padding))).reshape(num_draws, -1, size)
    weights = jnp.pad(weights, (0, padding)).reshape(-1, size)

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:  # blocks of ([S, b], [b]) to [N, C]
        # r = p(y, y_m) / p(y) p(y_m), which cannot underflow where p(y, y_m) does. Its mean under p(y) p(y_m) is 1, so
        # r − 1 may be taken from each r log r, and no term is negative: what is small keeps its digits.
        ratio = jnp.matmul(rows, block[0], precision="highest") / num_draws
        possible = ratio != 0
        divergence = jnp.where(possible, ratio * jnp.log(jnp.where(possible, ratio, 1.0)), 0.0) - (ratio - 1.0)
        return total + jnp.matmul(divergence, block[1], precision="highest").reshape(total.shape), None

    start = jnp.zeros((num_examples, num_classes), rows.dtype)
    total = jax.lax.scan(add, start, (jnp.moveaxis(columns, 1, 0), weights))[0]
    return jnp.sum(mean * total, axis=-1) / target_mean.shape[0]


def require_same_draws(name: str, outputs: Array, targets: Array) -> None:
    """Refuses what is not ``[S, N, C]`` and ``[S, M, C]`` under the same draws."""
    for each, value in ((name, outputs), (f"target_{name}", targets)):
        checks.draws(each, value)
        if value.ndim != 3:
            raise ValueError(f"{each} has shape {value.shape}, but [S, N, C] is needed: flatten the middle axes first")
    if outputs.shape[0] != targets.shape[0]:
        raise ValueError(f"{outputs.shape[0]} draws of {name} and {targets.shape[0]} of target_{name}: use the same")


def _divergence(log_p: Array, log_mean: Array) -> Array:
    # KL(p ‖ mean) = Σ p (e^r − 1 − r) with r = log(mean / p): Σ p e^r and Σ p are both 1, so they may be put in, and
    # then no term is negative. The −inf of an impossible class must not meet a 0, or the gradient is NaN, so it is
    # replaced before it is subtracted or exponentiated; what is left of its term is the probability of the mean.
    possible = ~(jnp.isneginf(log_p) | jnp.isneginf(log_mean))
    log_p, safe_log_mean = jnp.where(possible, log_p, 0.0), jnp.where(possible, log_mean, 0.0)
    ratio, p = safe_log_mean - log_p, jnp.where(possible, jnp.exp(log_p), 0.0)
    near = jnp.abs(ratio) < 0.1
    small, large = jnp.where(near, ratio, 0.0), jnp.where(near, 0.0, ratio)
    # By its series where the three parts of a term would cancel, and as mean − p − p r elsewhere.
    series = small**2 * (1 / 2 + small * (1 / 6 + small * (1 / 24 + small * (1 / 120 + small / 720))))
    return jnp.sum(jnp.where(near & possible, p * series, jnp.exp(log_mean) - p - p * large), axis=-1)


def _mean_and_lift(logits: Array) -> tuple[Array, Array]:
    """Mean probabilities ``[N, C]``, and what each draw has relative to them, ``p_s / mean``, ``[S, N, C]``."""
    log_p = numerics.log_probs(logits)
    log_mean = numerics.log_mean_exp(log_p)
    possible = ~jnp.isneginf(log_p)
    return jnp.exp(log_mean), jnp.where(possible, jnp.exp(jnp.where(possible, log_p - log_mean[None], 0.0)), 0.0)
