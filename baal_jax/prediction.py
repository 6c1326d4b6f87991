"""What the draws predict: all of it, summarised on the fly, or from a source that does not fit on the device.

There is one engine, :func:`summarise`: a map over batches of examples with a small summary for each. Prediction,
scores, acquisition and evaluation are thin on top of it. No number depends on ``batch_size``, on the order of the
examples or on the number of devices, because a draw is one function.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks
from baal_jax.metrics import MetricSet, default_metrics
from baal_jax.typing import Array, Dataset, FeatureFn, Key, Posterior, Predictions, PyTree, ScoreFn

SummaryFn = Callable[[Predictions], PyTree]


class Source(Protocol):
    """A collection on the host: a memory-mapped array, a TFDS data source, a torch data set, a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


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

    return summarise(key, posterior, state, inputs, scores, num_samples=num_samples, batch_size=batch_size)


@partial(jax.jit, static_argnames=("posterior", "metrics", "num_samples", "batch_size"))
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
        dataset: inputs and targets ``[N, …]``.
        metrics: a :class:`~baal_jax.metrics.MetricSet`; by default ``metrics.classification()`` for integer targets and
            ``metrics.regression()`` for others.
        num_samples: ``S``, as in :func:`predict`.
        batch_size: as in :func:`predict`.

    Returns:
        Name → ``float32`` value.

    Raises:
        ValueError: as in :func:`predict`, or the targets do not fit.
    """
    checks.leading_axis("dataset", dataset)
    metrics = default_metrics(dataset.targets) if metrics is None else metrics
    summary = summarise(
        key, posterior, state, dataset.inputs, metrics.summarise, num_samples=num_samples, batch_size=batch_size
    )
    return metrics.compute(summary, dataset.targets)


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
        batch_size: ``B``, None for all.
        features: ``(state, inputs [B, …]) -> [B, D]``, offered to ``summary_fn``.
        target_inputs: ``[M, …]`` inputs whose predictions, under the same draws, are offered to ``summary_fn``.

    Returns:
        Pytree ``[N, …]``.
    """
    checks.typed_key("key", key)
    num_samples = checks.positive_int("num_samples", num_samples)
    num_examples = checks.leading_axis("inputs", inputs)
    batch_size = checks.optional_int("batch_size", batch_size) or num_examples
    draws = posterior.sample(key, state, num_samples)
    target_logits = None if target_inputs is None else _apply(posterior, state, draws, target_inputs)

    def one_batch(batch: PyTree) -> PyTree:
        embeddings = None if features is None else features(state, batch)
        return summary_fn(Predictions(_apply(posterior, state, draws, batch), embeddings, target_logits))

    num_batches = -(-num_examples // batch_size)
    if num_batches <= 1:
        return one_batch(inputs)
    rows = -(-num_examples // num_batches)  # even batches: at most num_batches - 1 rows of padding
    strided = jax.tree.map(
        lambda leaf: _pad(leaf, rows * num_batches).reshape(rows, num_batches, *leaf.shape[1:]), inputs
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
    inputs_of: Callable[[Any], PyTree] | None = None,
) -> Iterator[PyTree]:
    """Predictions on a source that stays on the host, one batch after the other.

    The next batch is read while the device works, every batch has the same shape, and the padding of the last one is
    cut off: one compilation whatever the remainder.

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned.
        source: anything with ``__len__`` and ``__getitem__``. Arrays are sliced; a source with ``__getitems__`` is
            asked for whole batches; any other for one example at a time.
        num_samples: ``S``.
        batch_size: ``B``.
        inputs_of: what of an item is the input, for example ``lambda item: item["image"]``; the whole item by default.

    Yields:
        NumPy arrays (or pytrees of them) ``[S, b, …, C]``, in the order of the source, where ``b`` is ``batch_size``
        except in the last one.

    Raises:
        ValueError: the source is empty, or a number is not positive.
    """
    run = partial(predict, key, posterior, state, num_samples=num_samples, batch_size=None)
    return stream(run, source, batch_size, inputs_of, axis=1)


def score_stream(
    key: Key,
    posterior: Posterior,
    state: Any,
    source: Source,
    score_fn: ScoreFn,
    *,
    num_samples: int = 20,
    batch_size: int = 256,
    inputs_of: Callable[[Any], PyTree] | None = None,
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
        inputs_of: as in :func:`predict_stream`.

    Returns:
        NumPy ``[N, …]``.

    Raises:
        ValueError: as in :func:`predict_stream`.
    """
    run = partial(score, key, posterior, state, score_fn=score_fn, num_samples=num_samples, batch_size=None)
    return np.concatenate(list(stream(run, source, batch_size, inputs_of, axis=0)))


def stream(run: Callable, source: Source, batch_size: int, inputs_of: Callable | None, axis: int) -> Iterator[PyTree]:
    """Yields ``run(inputs [B, …])`` of every batch, in NumPy and without padding; ``axis`` is that of the examples."""
    batch_size, total = checks.positive_int("batch_size", batch_size), len(source)
    if total == 0:
        raise ValueError("source is empty: there is nothing to predict")

    def outputs() -> Iterator[PyTree]:
        # Two batches are in flight: the host loads one while the device computes the other.
        dispatched: deque[tuple[PyTree, int]] = deque()
        for start in range(0, total, batch_size):
            ids = slice(start, min(start + batch_size, total))
            inputs = jax.tree.map(lambda leaf: _pad(leaf, batch_size), load(source, ids, inputs_of))
            dispatched.append((run(inputs), ids.stop - start))
            if len(dispatched) == 2:
                yield _read_back(*dispatched.popleft(), axis)
        yield _read_back(*dispatched.popleft(), axis)

    return outputs()


def load(source: Source, ids: Any, inputs_of: Callable[[Any], PyTree] | None) -> PyTree:
    """Reads inputs ``[b, …]`` of the examples ``ids``, a slice or integers, into NumPy."""
    if isinstance(source, np.ndarray | jax.Array):
        batch = np.asarray(source[ids])
        return batch if inputs_of is None else inputs_of(batch)
    ids = list(range(len(source)))[ids] if isinstance(ids, slice) else [int(i) for i in ids]
    whole_batches = getattr(source, "__getitems__", None)
    items = whole_batches(ids) if whole_batches else [source[i] for i in ids]
    examples = [item if inputs_of is None else inputs_of(item) for item in items]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *examples)


def _read_back(outputs: PyTree, length: int, axis: int) -> PyTree:
    return jax.tree.map(lambda leaf: np.asarray(leaf).take(range(length), axis=axis), outputs)


def _apply(posterior: Posterior, state: Any, draws: PyTree, inputs: PyTree) -> PyTree:
    return jax.vmap(lambda draw: posterior.apply(state, draw, inputs))(draws)


def _pad(leaf: Any, length: int) -> Any:
    """Repeats the last example up to ``length``, so that padding is as harmless as data."""
    missing = length - leaf.shape[0]
    numpy = np if isinstance(leaf, np.ndarray) else jnp
    return numpy.concatenate([leaf, numpy.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf
