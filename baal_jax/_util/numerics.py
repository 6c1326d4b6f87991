"""Array functions in log space that the rest is written in. Scores are in nats, reductions in at least float32."""

import functools
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, meshes, random

in_blocks, jit, of_each_block = meshes.in_blocks, meshes.jit, meshes.of_each_block

# Ranking tiers below every ordinary score: weightless, then −inf, then NaN; what is not available stands at −inf.
_LARGEST, _WEIGHTLESS, _LOWEST, _NAN = 3.4e38, -1e38, -3e38, -3.2e38
_FEW = 16  # classes
_FUNCTIONS, _MOST_PROGRAMS = (types.FunctionType, functools.partial, type(jax.jit(lambda: None))), 64


def as_float(x: Array) -> Array:
    """At least float32: half precision and integers are widened, float64 is kept."""
    x = jnp.asarray(x)
    return x if x.dtype in (jnp.float32, jnp.float64) else x.astype(jnp.float32)


def jit_with_nan(function: Callable[..., Any], **static: Any) -> Callable[..., Any]:
    """``jax.jit`` of what answers NaN on purpose (nothing there, unknown): ``jax_debug_nans`` does not stop at it."""
    jitted = jit(function, **static)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        with jax.debug_nans(False):
            return jitted(*arguments, **options)

    vars(call).update(lower=jitted.lower, eval_shape=jitted.eval_shape)
    return call


def jit_for(owner: Any, function: Callable[..., Any], *static: Any, jit: Callable[..., Any] = jit) -> Any:
    """``function`` after its ``static`` arguments, compiled once and kept by ``owner``, a function that they hold."""
    # A ``jit`` of the module would keep them for ever, with networks and data that they captured.
    if not isinstance(owner, _FUNCTIONS):  # of an object, which is not to be changed
        return lambda *arguments: _of_module(jit, function, len(static))(*static, *arguments)
    programs = vars(owner).setdefault("_programs", _Programs())
    if (function, static) not in programs:
        if len(programs) == _MOST_PROGRAMS:
            programs.clear()
        programs[function, static] = jit(lambda *arguments: function(*static, *arguments))
    return programs[function, static]


class _Programs(dict):
    """Programs, which are left behind where their owner is pickled."""

    def __reduce__(self) -> tuple:
        return _Programs, ()


@functools.cache
def _of_module(jit: Callable[..., Any], function: Callable[..., Any], count: int) -> Any:
    return jit(function, static_argnums=tuple(range(count)))


def on_logits(score: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function of logits ``[S, N, …, C]``, which looks at their shape, and for probabilities if concrete."""

    def look(logits: Array, *others: Array, **options: Array) -> None:
        checks.no_probabilities("logits", logits)
        checks.classes("logits", logits)

    return checks.looked_at(jit(score), look)


def log_probs(logits: Array) -> Array:
    """``log_softmax`` over the last axis, in at least float32. Idempotent, so log-probabilities are logits too."""
    return jax.nn.log_softmax(as_float(logits), axis=-1)


def log_mean_exp(log_p: Array, axis: int = 0) -> Array:
    """``log(mean(exp(log_p)))``, exact where all entries are equal, −inf where all are −inf."""
    peak = jax.lax.stop_gradient(jnp.max(log_p, axis=axis, keepdims=True))
    peak = jnp.where(jnp.isneginf(peak), 0.0, peak)
    total = jnp.sum(jnp.exp(log_p - peak), axis=axis)
    count = log_p.shape[axis]
    mean = total / count
    # A compiler may divide by a constant as a product, and 41 · (1/41) is not 1; the gradient stays that of the mean.
    mean += jax.lax.stop_gradient(jnp.where(total == count, 1.0 - mean, 0.0))
    return _log(mean) + peak.squeeze(axis)


def _log(mean: Array) -> Array:
    return jnp.where(mean == 0, -jnp.inf, jnp.log(jnp.where(mean == 0, 1.0, mean)))  # the log has no gradient at 0


def mean_over_draws(function: Callable[..., Any], *arrays: Array) -> Any:
    """Mean of ``function`` of one draw over the leading axis of arrays ``[S, …]``, exact where all draws are equal."""
    # On a CPU one draw after the other, so that nothing in between is larger than a draw: what does not stay in a cache
    # is several times slower there. An accelerator fuses all of them.

    def one_by_one(*arrays: Array) -> Any:
        def add(before: tuple[Array, Any], draw: tuple) -> tuple[tuple[Array, Any], None]:
            count, mean = before[0] + 1, before[1]
            step = lambda mean, new: mean + (new - mean) / count.astype(mean.dtype)  # noqa: E731
            return (count, jax.tree.map(step, mean, jax.checkpoint(function)(*draw))), None

        start = jax.tree.map(jnp.zeros_like, function(*(array[0] for array in arrays)))
        return jax.lax.scan(add, (jnp.zeros((), jnp.int32), start), arrays)[0][1]

    around_first = lambda each: each[0] + jnp.mean(each - each[:1], axis=0)  # noqa: E731
    at_once = lambda *arrays: jax.tree.map(around_first, jax.vmap(function)(*arrays))  # noqa: E731
    return jax.lax.platform_dependent(*arrays, cpu=one_by_one, default=at_once)


def variance_over_draws(function: Callable[..., Array], *arrays: Array) -> Array:
    """As :func:`mean_over_draws`, the variance; 0 where all draws are equal."""
    mean = mean_over_draws(function, *arrays)
    return mean_over_draws(lambda *draw: (function(*draw) - mean) ** 2, *arrays)


def mean_over_log_probs(function: Callable[[Array], Any], logits: Array) -> Any:
    """:func:`mean_over_draws` of a function of the log-probabilities ``[N, …, C]`` of one draw."""
    return mean_over_draws(lambda *draw: function(_minus(*draw)), logits, _normaliser(logits))


def log_mean_probs(logits: Array) -> Array:
    """``[N, …, C]`` log-probabilities of the mean prediction, exact where all draws are equal."""
    # In units of the first draw: where all are equal the mean is 1 and its logarithm 0. Below e⁻⁸⁰ nothing depends on
    # a digit, and above it no ratio overflows.
    unit = jax.lax.stop_gradient(jnp.maximum(_minus(logits[0], _normaliser(logits)[0]), -80.0))
    return _log(mean_over_log_probs(lambda log_p: jnp.exp(log_p - unit), logits)) + unit


def _normaliser(logits: Array) -> Array:
    logits = as_float(logits)
    if logits.shape[-1] > _FEW:
        return jax.nn.logsumexp(logits, axis=-1)
    # A CPU sums few numbers that lie beside each other twice as fast if the sum is written out.
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    peak = jnp.where(jnp.isneginf(peak), 0.0, peak)
    of_class = [jnp.exp(logits[..., label] - peak) for label in range(logits.shape[-1])]
    return peak + jnp.log(functools.reduce(jnp.add, of_class))


def _minus(logits: Array, normaliser: Array) -> Array:
    return as_float(logits) - normaliser[..., None]


def entropy(log_p: Array) -> Array:
    """``−Σ_c p_c log p_c`` over the last axis, with ``0 log 0 = 0`` in value and in gradient."""
    possible = ~jnp.isneginf(log_p)
    safe = jnp.where(possible, log_p, 0.0)
    return -jnp.sum(jnp.where(possible, jnp.exp(safe) * safe, 0.0), axis=-1)


@jax.custom_batching.custom_vmap
def largest(value: Array) -> Array:
    """``value []``, and under ``vmap`` the largest of all: branches and loops on it stay such; each masks its own."""
    return value


@largest.def_vmap
def _largest(_: int, __: Any, values: Array) -> tuple[Array, bool]:
    return largest(jnp.max(values)), False


def bisect(uphill: Callable[[Array], Array], ends: tuple[Array, Array], halvings: int) -> Array:
    """The place between two ends to whose right ``uphill`` is true."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = 0.5 * (ends[0] + ends[1])
        beyond = uphill(middle)
        return jnp.where(beyond, ends[0], middle), jnp.where(beyond, middle, ends[1])

    left, right = jax.lax.fori_loop(0, halvings, halve, ends)
    return 0.5 * (left + right)


def rank_values(scores: Array, available: Array) -> Array:
    """Finite float32 ranking keys: scores in their order, then NaN, and −inf for what is not available."""
    scores = scores.astype(jnp.float32)
    scores = jnp.where(scores == 0, 0.0, scores)  # top_k would rank −0 below 0
    return jnp.where(available, jnp.where(jnp.isnan(scores), _NAN, jnp.clip(scores, _LOWEST, _LARGEST)), -jnp.inf)


def weightless_tier(key: Array, shape: tuple[int, ...]) -> Array:
    """Random ranking keys below every ordinary score and above NaN."""
    return _WEIGHTLESS * (1.0 + jax.random.uniform(random.vectorised(key), shape, jnp.float32))


def top_indices(values: Array, count: int) -> Array:
    """``int32[count]`` positions of the largest ranking keys, best first, −1 for what is not available."""
    # The best of the best of every block: of an array over many devices only these travel.
    blocks = in_blocks(values)
    best, indices = of_each_block(lambda block: jax.lax.top_k(block, min(count, blocks.shape[1])), blocks)
    indices += jnp.arange(blocks.shape[0], dtype=jnp.int32)[:, None] * blocks.shape[1]
    if blocks.shape[0] == 1:
        return jnp.where(jnp.isneginf(best[0]), -1, indices[0])
    # Positions ascend among equal keys, so that a stable order of keys takes the lowest first.
    order = jnp.argsort(-best.ravel(), stable=True)[:count]
    return jnp.where(jnp.isneginf(best.ravel()[order]), -1, indices.ravel()[order])


def rank_within(groups: Array, *keys: Array) -> Array:
    """``int32[N]``: the place of every row in its group, ordered by the first key, then the next, then the id."""
    order = jnp.lexsort((*reversed(keys), groups))
    ordered = groups[order]
    place = jnp.arange(groups.shape[0], dtype=jnp.int32)
    first = jnp.searchsorted(ordered, ordered, side="left").astype(jnp.int32)
    return jnp.zeros_like(place).at[order].set(place - first)


def true_rows(mask: Array) -> tuple[Callable[[Array], Array], Array]:
    """From places ``[k]`` among the true rows of a mask to their ids, 0 beyond the last, and how many there are."""
    # As ``jnp.flatnonzero`` would list them; but of a mask over many devices only what is asked for travels.
    counts = jnp.cumsum(in_blocks(mask), axis=1, dtype=jnp.int32)
    ends = jnp.cumsum(counts[:, -1], dtype=jnp.int32)

    def ids(places: Array) -> Array:
        within = places[None] - (ends - counts[:, -1])[:, None]
        rows = jax.vmap(partial(jnp.searchsorted, side="right"))(counts, within).astype(jnp.int32)
        rows += jnp.arange(len(counts), dtype=jnp.int32)[:, None] * counts.shape[1]
        return jnp.sum(jnp.where((within >= 0) & (within < counts[:, -1:]), rows, 0), axis=0, dtype=jnp.int32)

    return ids, ends[-1]


def rows_at(leaf: Array, ids: Array) -> Array:
    """``leaf[ids]`` of one or several, as a gather: of a slice a compiler would bring all rows to every device."""
    return leaf[ids[None]][0] if ids.ndim == 0 else leaf[ids]


def take_or(values: Array, indices: Array, otherwise: float) -> Array:
    """``values[indices]``, and ``otherwise`` where an index is −1."""
    return jnp.where(indices >= 0, values[jnp.maximum(indices, 0)], otherwise)


def classes_for(name: str, logits: Array, targets: Array) -> Array:
    """Integer classes ``[N, …]`` for logits ``[N, …, C]``; a column of them ``[N, …, 1]`` will do."""
    if targets.shape == (*logits.shape[:-1], 1):
        targets = targets[..., 0]
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != logits.shape[:-1]:
        need = f"{name} of shape {logits.shape}: pass integer classes with the shape of {name} without the last axis"
        raise ValueError(f"targets {targets.dtype}{targets.shape} do not fit {need}")
    return targets


def targets_for(name: str, outputs: Array, targets: Array) -> Array:
    """Targets in shape and type of the outputs; a single output dimension may be missing."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
        targets = targets[..., None]
    if outputs.shape != targets.shape:
        raise ValueError(f"targets have shape {targets.shape}, but {name} {outputs.shape}: make them equal")
    return targets.astype(outputs.dtype)


def gaussian(name: str, outputs: Array, noise: float | None) -> Callable[[Array], tuple[Array, Array]]:
    """From outputs ``[…, 2C]``, or ``[…, C]`` with ``noise``, to means and log-variances ``[…, C]``."""
    checks.draws(name, outputs)
    if noise is None and outputs.shape[-1] % 2:
        raise ValueError(f"{name} has shape {outputs.shape}, but means and as many log-variances are needed, or noise=")

    def split(outputs: Array) -> tuple[Array, Array]:
        outputs = as_float(outputs)
        if noise is not None:
            return outputs, jnp.full_like(outputs, 2.0 * jnp.log(noise))
        mean, log_variance = jnp.split(outputs, 2, axis=-1)
        return mean, log_variance

    return split
