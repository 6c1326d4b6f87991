"""BatchBALD: the information that a whole batch of labels shares with the parameters, picked greedily."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.heuristics import bald
from baal_jax.selection._common import best_few, compiled, inverse_cdf, size_of
from baal_jax.typing import Acquisition, Array, Key, Predictions, Selection

_BLOCK = 2**22  # numbers of the largest temporary array, 16 MiB
_ROUNDING = 1e-5  # nats by which a bound may be exceeded
_GROUP = 10  # configurations that share a bound
_PARTS = 64  # of a long sum
_TINY = 1e-37  # what the logarithm of 0 is taken of


def batch_bald(num_configurations: int = 10_000) -> Acquisition:
    r"""The batch whose labels jointly have the most information about the parameters, picked greedily.

    .. math:: I(y_1, \dots, y_b; \theta) = \sum_{t=1}^b \Bigl( H[y_t \mid y_1, \dots, y_{t-1}]
              - \mathbb E_s\, H[p_s(y_t)] \Bigr)

    The conditional entropy is an average over the label configurations of the picks before. While there are at most
    ``num_configurations`` of them, all are enumerated and the value is exact for the ``S`` draws; beyond that they are
    a stratified sample, the same for every example. Only examples whose gain can be the largest are evaluated (lazy
    greedy, information being submodular; and bounds from groups of configurations), which changes no pick. Besides the
    probabilities ``[N, S, C]``, memory does not grow with ``N``.

    ``S`` draws hold at most ``log S`` nats, which ``log S / BALD`` picks use up, then noise: take many for many picks.

    Args:
        num_configurations: ``M``, how many label configurations are kept at most.

    Returns:
        An :class:`~baal_jax.Acquisition`. Its scores are the gains in nats, which sum to the joint information. The
        first is BALD. In the exact regime they do not increase.

    Raises:
        ValueError: ``num_configurations`` is not positive, or predictions are not ``[S, N, C]``.

    References:
        Kirsch, van Amersfoort and Gal, `BatchBALD: efficient and diverse batch acquisition for deep Bayesian active
        learning <https://arxiv.org/abs/1906.08158>`_, 2019; Minoux, `Accelerated greedy algorithms for maximizing
        submodular set functions <https://doi.org/10.1007/BFb0006528>`_, 1978.

    Example:
        >>> certain = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))  # two draws, each certain of another class
        >>> same = jnp.stack([certain, certain, certain.at[1].set(jnp.log(jnp.array([0.6, 0.4])))])  # [N, S, C]
        >>> picked = selection.batch_bald().select(jax.random.key(0), same, jnp.ones(3, bool), 2)
        >>> picked.indices.tolist(), [round(float(gain), 3) for gain in picked.scores]
        ([0, 1], [0.693, 0.0])
    """
    num_configurations = checks.positive_int("num_configurations", num_configurations)

    def summarise(predictions: Predictions) -> Array:
        checks.classes("logits", predictions.logits)
        if predictions.logits.ndim != 3:
            need = "one an example, [S, N, C]: rank maps with heuristics.reduce_spatial and selection.power"
            raise ValueError(f"logits have shape {predictions.logits.shape}, but BatchBALD needs {need}")
        return jnp.moveaxis(numerics.log_probs(predictions.logits), 0, 1)

    def select(key: Key, summary: Array, available: Array, query_size: int, labelled: Array | None = None) -> Selection:
        return greedy(key, summary, available, query_size, num_configurations)[0]

    return Acquisition(summarise, compiled(select), tasks=("classification",))


class _Joint(NamedTuple):
    """The posterior over draws, given label configurations of the picks so far."""

    log_weights: Array  # [M, S], log-posterior of the draws given each configuration
    share: Array  # [M], probabilities of the configurations


def greedy(key: Key, log_probs: Array, available: Array, query_size: int, num_kept: int) -> tuple[Selection, Array]:
    """BatchBALD on ``[N, S, C]``: the selection, and ``int32[Q]``, how many examples were evaluated for each pick."""
    if log_probs.ndim != 3 or log_probs.shape[0] != available.shape[0]:
        raise ValueError(f"log-probabilities {log_probs.shape} for {available.shape[0]} examples: [N, S, C] is needed")
    query_size = size_of(query_size, available.shape[0])
    num_draws, num_classes = log_probs.shape[1:]
    log_probs = numerics.log_probs(log_probs.astype(jnp.float32))
    broken = jnp.any(jnp.isnan(log_probs), axis=(1, 2))
    log_probs = jnp.where(broken[:, None, None], -jnp.log(float(num_classes)), log_probs)
    # Given θ labels are independent, so that H[y | θ], in the mean over draws, is the same whatever was picked before.
    noise = jnp.mean(numerics.entropy(log_probs), axis=1)

    def pick(gains: Array, left: Array) -> tuple[Array, Array, Array]:
        index = best_few(gains, left, 1)[0]
        return index, jnp.where(index < 0, jnp.nan, numerics.rows_at(gains, index)), left.at[index].set(False)

    gains = jnp.where(broken, jnp.nan, bald(jnp.moveaxis(log_probs, 1, 0)))
    index, gain, left = pick(gains, available)
    picked = [(index, gain, jnp.sum(available, dtype=jnp.int32))]
    joint = _Joint(jnp.full((1, num_draws), -jnp.log(float(num_draws)), jnp.float32), jnp.ones(1, jnp.float32))
    keys = jax.random.split(key, query_size)

    # Enumerated while tracing, as shapes grow with every pick. Gains before are bounds: information is submodular.
    while len(picked) < query_size and joint.share.shape[0] * num_classes <= num_kept:
        joint = _extend(joint, numerics.rows_at(log_probs, index))
        gains, evaluated = _evaluate(joint, log_probs, noise, gains, left & ~broken)
        index, gain, left = pick(gains, left)
        picked.append((index, gain, evaluated))

    def step(carry: tuple, key: Key) -> tuple[tuple, tuple]:
        joint, index, left = carry
        joint = _resampled(key, joint, numerics.rows_at(log_probs, index), num_kept)
        # Sampled entropies need not shrink: nothing is known of an example before it is evaluated.
        unknown = jnp.where(broken, jnp.nan, jnp.full_like(noise, jnp.inf))
        gains, evaluated = _evaluate(joint, log_probs, noise, unknown, left & ~broken)
        index, gain, left = pick(gains, left)
        return (joint, index, left), (index, gain, evaluated)

    picks = [jnp.stack(part) for part in zip(*picked, strict=True)]
    if len(picked) < query_size:
        # Configurations without a share are never drawn, and all steps have one shape: so they can be scanned.
        missing = ((0, num_kept - joint.share.shape[0]), (0, 0))
        joint = _Joint(jnp.pad(joint.log_weights, missing), jnp.pad(joint.share, missing[0]))
        _, rest = jax.lax.scan(step, (joint, index, left), keys[len(picked) :])
        picks = [jnp.concatenate(parts) for parts in zip(picks, rest, strict=True)]
    indices, scores, evaluated = picks
    return Selection(indices.astype(jnp.int32), scores.astype(jnp.float32)), evaluated


def _extend(joint: _Joint, log_p: Array) -> _Joint:
    """All configurations with one label more; ``log_p [S, C]``."""
    # Bayes' rule for every configuration: p(θ | y_1…, y) ∝ p(θ | y_1…) p(y | θ), and the sum is p(y | y_1…).
    log_weights = joint.log_weights[:, None] + log_p.T[None]  # [M, C, S]
    total = jax.scipy.special.logsumexp(log_weights, axis=-1)
    possible = ~jnp.isneginf(total)  # what cannot happen has a share of 0 and keeps weights that are no NaN
    normalised = log_weights - jnp.where(possible, total, 0.0)[..., None]
    log_weights = jnp.where(possible[..., None], normalised, joint.log_weights[:, None])
    share = joint.share[:, None] * jnp.exp(total)
    return _Joint(log_weights.reshape(-1, log_p.shape[0]), share.reshape(-1))


def _resampled(key: Key, joint: _Joint, log_p: Array, count: int) -> _Joint:
    """``count`` configurations with one label more, a stratified sample of all of them."""
    chance = jnp.matmul(jnp.exp(joint.log_weights), jnp.exp(log_p), precision="highest")  # [M, C]
    # One uniform number in each of `count` equal parts of the distribution: less noise than as many free ones.
    uniforms = (jnp.arange(count, dtype=jnp.float32) + jax.random.uniform(key, (count,), jnp.float32)) / count
    pair = inverse_cdf(uniforms, (joint.share[:, None] * chance).reshape(-1), jnp.ones(chance.size, bool))
    row, label = pair // log_p.shape[1], pair % log_p.shape[1]
    log_weights = joint.log_weights[row] + log_p.T[label]
    log_weights -= jax.scipy.special.logsumexp(log_weights, axis=-1, keepdims=True)
    return _Joint(log_weights, jnp.full(count, 1.0 / count, jnp.float32))


def _coarse(joint: _Joint, num_groups: int) -> _Joint:
    """Groups of configurations that point to the same draw, and as clearly, each with its mean posterior."""
    # Entropy is concave, so the entropy of a group's mean prediction bounds the mean entropy from above.
    num, num_draws = joint.log_weights.shape
    order = jnp.lexsort((jnp.max(joint.log_weights, axis=1), jnp.argmax(joint.log_weights, axis=1)))
    padding = -num % num_groups
    share = jnp.pad(joint.share[order], (0, padding)).reshape(num_groups, -1)
    weights = jnp.pad(jnp.exp(joint.log_weights[order]), ((0, padding), (0, 0))).reshape(num_groups, -1, num_draws)
    total = jnp.sum(share, axis=1)
    mean = jnp.einsum("gk,gks->gs", share, weights, precision="highest") / jnp.where(total > 0, total, 1.0)[:, None]
    return _Joint(jnp.log(mean), total)


def _entropies(joint: _Joint, p: Array) -> Array:
    """Mean entropy of the label given a configuration, ``[b]``, for probabilities ``[b, S, C]``."""
    num_examples, num_draws, num_classes = p.shape
    columns = jnp.transpose(p, (1, 2, 0)).reshape(num_draws, -1)  # examples last: sums over classes are vectorised
    mean = jnp.matmul(jnp.exp(joint.log_weights), columns, precision="highest")
    terms = mean * jnp.log(jnp.maximum(mean, _TINY))  # 0 where the mean is
    weighted = joint.share[:, None] * jnp.sum(terms.reshape(-1, num_classes, num_examples), axis=1)
    # Ten thousand terms one after the other would be rounded off to four digits.
    parts = jnp.pad(weighted, ((0, -weighted.shape[0] % _PARTS), (0, 0))).reshape(_PARTS, -1, weighted.shape[1])
    return -jnp.sum(jnp.sum(parts, axis=0), axis=0)


def _evaluate(joint: _Joint, log_probs: Array, noise: Array, bounds: Array, left: Array) -> tuple[Array, Array]:
    """Gains ``[N]``, exact wherever the largest may be, and bounds elsewhere; how many examples were evaluated."""
    # Bounds are the old ones and, with many configurations, those of a tenth as many groups of them. Blocks of examples
    # are worked through from the highest bound down, until no bound reaches the best gain (lazy greedy).
    num_examples, _, num_classes = log_probs.shape
    num_groups = joint.share.shape[0] // _GROUP
    if num_groups >= num_classes:
        groups = _coarse(joint, num_groups)
        rows = max(1, min(num_examples, _BLOCK // (num_groups * num_classes)))
        coarse = jax.lax.map(lambda p: _entropies(groups, jnp.exp(p)[None])[0], log_probs, batch_size=rows)
        bounds = jnp.minimum(bounds, coarse - noise + _ROUNDING)
    size = max(1, min(num_examples, _BLOCK // (joint.share.shape[0] * num_classes)))
    order = jnp.argsort(jnp.where(left, -bounds, jnp.inf))
    order = jnp.pad(order, (0, -num_examples % size), constant_values=num_examples)
    highest = jnp.where(left, bounds, -jnp.inf).at[order].get(mode="fill", fill_value=-jnp.inf)

    def promising(carry: tuple) -> Array:
        start, _, best = carry
        bound = highest[jnp.minimum(start, num_examples - 1)]
        return (start < num_examples) & (bound >= best - _ROUNDING) & ~jnp.isneginf(bound)

    def body(carry: tuple) -> tuple:
        start, gains, best = carry
        ids = jax.lax.dynamic_slice(order, (start,), (size,))
        p = jnp.exp(log_probs.at[ids].get(mode="fill", fill_value=0.0))
        exact = _entropies(joint, p) - noise.at[ids].get(mode="fill", fill_value=0.0)
        known = left.at[ids].get(mode="fill", fill_value=False)
        gains = gains.at[jnp.where(known, ids, num_examples)].set(exact, mode="drop")
        return start + size, gains, jnp.maximum(best, jnp.max(jnp.where(known, exact, -jnp.inf)))

    start, gains, _ = jax.lax.while_loop(promising, body, (jnp.int32(0), bounds, jnp.float32(-jnp.inf)))
    return gains, jnp.minimum(start, jnp.sum(left, dtype=jnp.int32))
