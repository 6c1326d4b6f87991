"""What the draws predict: all of it, summarised on the fly, or from a source that does not fit on the device.

There is one engine, :func:`summarise`: a map over batches of examples with a small summary for each. Prediction,
scores, acquisition and evaluation are thin on top of it. No number depends on ``batch_size``, on the order of the
examples or on the number of devices, because a draw is one function.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, numerics, sources
from baal_jax._util.sources import Source
from baal_jax.metrics import MetricSet
from baal_jax.training.tasks import metrics_of
from baal_jax.typing import Array, Dataset, FeatureFn, Key, Posterior, Predictions, PyTree, ScoreFn

SummaryFn = Callable[[Predictions], PyTree]
_MOST = 2**28  # outputs of all draws on a batch: 1 GiB


@partial(jax.jit, static_argnames=("posterior", "num_samples", "batch_size"))
def predict(
    key: Key,
    posterior: Posterior,
    state: Any,
    inputs: PyTree,
    *,
    num_samples: int = 20,
    batch_size: int | None = 256,
) -> PyTree:
    """Outputs of every draw on every example.

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned.
        inputs: array or pytree ``[N, …]``.
        num_samples: ``S``. With more samples the first ones stay the same.
        batch_size: how many examples are in work at a time, None for all. Bounds memory, changes no number.

    Returns:
        ``[S, N, …, C]`` (a pytree of such arrays for a network with several outputs).

    Raises:
        ValueError: a number is not positive, the key is not typed, or the model would be deterministic.

    Example:
        >>> import baal_jax as baal
        >>> sample = lambda key, state, num_samples: jax.random.normal(key, (num_samples,))
        >>> scaled = baal.Posterior(fit=None, sample=sample, apply=lambda state, draw, inputs: inputs * draw)
        >>> baal.predict(jax.random.key(0), scaled, None, jnp.ones((5, 3)), num_samples=4, batch_size=2).shape
        (4, 5, 3)
    """

    def by_example(predictions: Predictions) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), predictions.logits)

    outputs = summarise(key, posterior, state, inputs, by_example, num_samples=num_samples, batch_size=batch_size)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), outputs)


@partial(jax.jit, static_argnames=("posterior", "score_fn", "num_samples", "batch_size"))
def score(
    key: Key,
    posterior: Posterior,
    state: Any,
    inputs: PyTree,
    score_fn: ScoreFn,
    *,
    num_samples: int = 20,
    batch_size: int | None = 256,
) -> Array:
    """Scores of every example, fused with prediction: never holds ``[S, N, C]``.

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned.
        inputs: array or pytree ``[N, …]``.
        score_fn: a heuristic, ``logits [S, B, …, C] -> [B, …]``. It is compiled in: reuse the same function object, a
            new lambda compiles again.
        num_samples: ``S``, as in :func:`predict`.
        batch_size: as in :func:`predict`.

    Returns:
        ``[N, …]`` scores, equal to ``score_fn(predict(…))``.

    Raises:
        ValueError: as in :func:`predict`.
    """

    def scores(predictions: Predictions) -> Array:
        return score_fn(predictions.logits)

    num_samples = distinct(posterior, num_samples)
    return summarise(key, posterior, state, inputs, scores, num_samples=num_samples, batch_size=batch_size)


def evaluate(
    key: Key,
    posterior: Posterior,
    state: Any,
    dataset: Dataset,
    *,
    metrics: MetricSet | None = None,
    num_samples: int = 20,
    batch_size: int | None = 256,
) -> dict[str, Array]:
    """Metrics of the Bayesian model average on labelled data.

    The draws are averaged as probabilities, and every example counts the same, however the data are cut into batches.

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned.
        dataset: inputs and targets ``[N, …]``; inputs may be a source on the host, which is mapped batch by batch and
            reduced once: the same numbers.
        metrics: a :class:`~baal_jax.metrics.MetricSet`; by default that of the posterior's task, see
            :mod:`baal_jax.training.tasks`.
        num_samples: ``S``, as in :func:`predict`.
        batch_size: as in :func:`predict`.

    Returns:
        Name → ``float32`` value.

    Raises:
        TypeError: ``dataset`` is none.
        ValueError: as in :func:`predict`, or targets are not right, or do not tell what is learnt.
    """
    metrics = metrics_of("dataset", posterior, state, dataset, metrics)
    if not sources.is_source(dataset.inputs):
        summary = _mapped(key, posterior, state, dataset.inputs, metrics, num_samples, batch_size)
    else:
        on_batch = lambda inputs: _mapped(key, posterior, state, inputs, metrics, num_samples, None)  # noqa: E731
        summary = sources.mapped(on_batch, dataset.inputs, batch_size)
    return numerics.jit_with_nan(metrics.compute)(summary, dataset.targets)


@partial(jax.jit, static_argnums=(1, 4, 5, 6))
def _mapped(
    key: Key,
    posterior: Posterior,
    state: Any,
    inputs: PyTree,
    metrics: MetricSet,
    num_samples: int,
    batch_size: int | None,
) -> PyTree:
    num_samples = distinct(posterior, num_samples)
    return summarise(key, posterior, state, inputs, metrics.summarise, num_samples=num_samples, batch_size=batch_size)


def distinct(posterior: Posterior, num_samples: int) -> int:
    """As many draws as differ: members that repeat cost time and tell nothing."""
    num_samples = checks.positive_int("num_samples", num_samples)
    return num_samples if posterior.num_draws is None else min(num_samples, posterior.num_draws)


def summarise(
    key: Key,
    posterior: Posterior,
    state: Any,
    inputs: PyTree,
    summary_fn: SummaryFn,
    *,
    num_samples: int,
    batch_size: int | None,
    features: FeatureFn | None = None,
    target_inputs: PyTree = None,
) -> PyTree:
    """The engine: maps ``summary_fn`` over batches of examples. To be used inside ``jit``.

    Batch ``j`` of ``J`` holds the examples ``j, j + J, j + 2J, …``, so that with inputs sharded over their first axis
    every device works on examples of its own in every batch.

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned.
        inputs: array or pytree ``[N, …]``.
        summary_fn: :class:`~baal_jax.Predictions` of a batch ``->`` pytree ``[B, …]``.
        num_samples: ``S``.
        batch_size: ``B``, None for all; fewer where the draws on them would be more than 2²⁸ numbers.
        features: ``(state, inputs [B, …]) -> [B, D]``, offered to ``summary_fn``.
        target_inputs: ``[M, …]`` inputs whose predictions, under the same draws, are offered to ``summary_fn``.

    Returns:
        Pytree ``[N, …]``.
    """
    checks.typed_key("key", key)
    num_samples = checks.positive_int("num_samples", num_samples)
    num_examples = checks.leading_axis("inputs", inputs)
    given = checks.optional_int("batch_size", batch_size)
    batch_size = given or num_examples
    draws = posterior.sample(key, state, num_samples)
    target_logits = None if target_inputs is None else _apply(posterior, state, draws, target_inputs)

    def one_batch(batch: PyTree) -> PyTree:
        embeddings = None if features is None else features(state, batch)
        return summary_fn(Predictions(_apply(posterior, state, draws, batch), embeddings, target_logits))

    if given is not None:
        first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)
        numbers = jax.tree.leaves(jax.eval_shape(partial(_apply, posterior), state, draws, first))
        batch_size = max(1, min(batch_size, _MOST // max(1, sum(leaf.size for leaf in numbers))))
    num_batches = -(-num_examples // batch_size)
    if num_batches <= 1:
        return one_batch(inputs)
    rows = -(-num_examples // num_batches)  # even batches: at most num_batches - 1 rows of padding
    strided = jax.tree.map(
        lambda leaf: sources.pad(leaf, rows * num_batches).reshape(rows, num_batches, *leaf.shape[1:]), inputs
    )
    summaries = jax.lax.map(
        lambda j: one_batch(jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, j, 1, False), strided)),
        jnp.arange(num_batches),
    )
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:num_examples], summaries)


def predict_stream(
    key: Key,
    posterior: Posterior,
    state: Any,
    source: Source,
    *,
    num_samples: int = 20,
    batch_size: int = 256,
) -> Iterator[PyTree]:
    """Predictions on a source that stays on the host, one batch after the other.

    The next batch is read while the device works, every batch has the same shape, and the padding of the last one is
    cut off: one compilation whatever the remainder.

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned.
        source: anything with ``__len__`` and ``__getitem__``. Arrays are sliced; a source with ``__getitems__`` is
            asked for whole batches; any other for one example at a time. Where an item is more than the input, give a
            :class:`~baal_jax.data.View`.
        num_samples: ``S``.
        batch_size: ``B``.

    Yields:
        NumPy arrays (or pytrees of them) ``[S, b, …, C]``, in the order of the source, where ``b`` is ``batch_size``
        except in the last one.

    Raises:
        ValueError: the source is empty, or a number is not positive.
    """
    run = partial(predict, key, posterior, state, num_samples=num_samples, batch_size=None)
    return sources.stream(run, source, batch_size, axis=1)


def score_stream(
    key: Key,
    posterior: Posterior,
    state: Any,
    source: Source,
    score_fn: ScoreFn,
    *,
    num_samples: int = 20,
    batch_size: int = 256,
) -> np.ndarray:
    """Scores of a source that stays on the host; equal to :func:`score` on the same examples.

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned.
        source: as in :func:`predict_stream`.
        score_fn: a heuristic, ``logits [S, B, …, C] -> [B, …]``.
        num_samples: ``S``.
        batch_size: ``B``.

    Returns:
        NumPy ``[N, …]``.

    Raises:
        ValueError: as in :func:`predict_stream`.
    """
    run = partial(score, key, posterior, state, score_fn=score_fn, num_samples=num_samples, batch_size=None)
    return np.concatenate(list(sources.stream(run, source, batch_size)))


def _apply(posterior: Posterior, state: Any, draws: PyTree, inputs: PyTree) -> PyTree:
    return jax.vmap(lambda draw: posterior.apply(state, draw, inputs))(draws)
