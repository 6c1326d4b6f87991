"""What the draws predict: all of it, summarised on the fly, or from a source that does not fit on the device.

The engine is :func:`summarise`, a map over batches of examples with a small summary for each. No number depends on
``batch_size``, on the order of the examples or on the number of devices, because a draw is one function.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, meshes, numerics, sources
from baal_jax.metrics import MetricSet
from baal_jax.training.tasks import metrics_of
from baal_jax.typing import Array, Dataset, FeatureFn, Key, Posterior, Predictions, PyTree, ScoreFn

SummaryFn = Callable[[Predictions], PyTree]
_MOST = 2**28  # outputs of all draws on a batch: 1 GiB


def predict(
    key: Key, posterior: Posterior, state: Any, inputs: PyTree, *, num_samples: int = 20, batch_size: int | None = 256
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
        >>> sample = lambda key, state, num_samples: jax.random.normal(key, (num_samples,))
        >>> scaled = baal.Posterior(fit=None, sample=sample, apply=lambda state, draw, inputs: inputs * draw)
        >>> baal.predict(jax.random.key(0), scaled, None, jnp.ones((5, 3)), num_samples=4, batch_size=2).shape
        (4, 5, 3)
    """
    return _program(posterior, num_samples, batch_size, _swapped, True)(key, state, inputs)


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
        inputs: array or pytree ``[N, …]``, or a source as in :func:`predict_stream`.
        score_fn: a heuristic, ``logits [S, B, …, C] -> [B, …]``, compiled in: a new lambda compiles again.
        num_samples: ``S``, as in :func:`predict`.
        batch_size: as in :func:`predict`.

    Returns:
        ``[N, …]`` scores, equal to ``score_fn(predict(…))``.

    Raises:
        ValueError: as in :func:`predict`.

    Example:
        >>> posterior = posteriors.logistic_regression(2)
        >>> train = baal.Dataset(jnp.array([[-1.0], [1.0], [0.2]]), jnp.array([0, 1, 1]))
        >>> state = posterior.fit(jax.random.key(0), train, jnp.array([True, True, False]))
        >>> baal.score(jax.random.key(1), posterior, state, train.inputs, heuristics.entropy).shape
        (3,)
    """
    num_samples = distinct(posterior, num_samples)
    if sources.is_source(inputs):
        drawn = _drawn(key, posterior, state, num_samples)
        run = partial(_program(posterior, num_samples, batch_size, score_fn, True), key, drawn)
        return jnp.asarray(sources.mapped(run, inputs, batch_size))
    return _program(posterior, num_samples, batch_size, score_fn, True)(key, state, inputs)


@meshes.auto
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
    """Metrics of the Bayesian model average, that of probabilities, on labelled data, whatever the batches.

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned.
        dataset: inputs and targets ``[N, …]``; inputs may be a source on the host, with the same numbers.
        metrics: by default those of the posterior's task, see :mod:`baal_jax.training.tasks`.
        num_samples: ``S``, as in :func:`predict`.
        batch_size: as in :func:`predict`.

    Returns:
        Name → ``float32`` value.

    Raises:
        TypeError: ``dataset`` is none.
        ValueError: as in :func:`predict`, or targets are not right, or do not tell what is learnt.

    Example:
        >>> posterior = posteriors.logistic_regression(2)
        >>> train = baal.Dataset(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]))
        >>> state = posterior.fit(jax.random.key(0), train, jnp.ones(2, bool))
        >>> float(baal.evaluate(jax.random.key(1), posterior, state, train)["accuracy"])
        1.0
    """
    metrics = metrics_of("dataset", posterior, state, dataset, metrics)
    num_samples = distinct(posterior, num_samples)
    if not sources.is_source(dataset.inputs):
        summary = _program(posterior, num_samples, batch_size, metrics.summarise, False)(key, state, dataset.inputs)
    else:
        drawn = _drawn(key, posterior, state, num_samples)
        run = partial(_program(posterior, num_samples, batch_size, metrics.summarise, False), key, drawn)
        summary = sources.mapped(run, dataset.inputs, batch_size)
    # What is padding has an output, and no target.
    summary, targets = jax.tree.map(lambda leaf: leaf[: getattr(dataset, "size", None)], (summary, dataset.targets))
    return numerics.jit_with_nan(metrics.compute)(summary, targets)


def _program(posterior: Posterior, *static: Any) -> Callable[..., Any]:
    return numerics.jit_for(posterior.apply, _summarised, posterior, *static)


def _drawn(key: Key, posterior: Posterior, state: Any, num_samples: int) -> "Drawn":
    return numerics.jit_for(posterior.apply, draw, posterior, num_samples, None, None)(key, state)


def _summarised(posterior: Posterior, num: int, size: Any, function: Callable, of_logits: bool, *given: PyTree) -> Any:
    key, state, inputs = given
    summary_fn = (lambda predictions: function(predictions.logits)) if of_logits else function
    summary = summarise(key, posterior, state, inputs, summary_fn, num_samples=num, batch_size=size)
    return _swapped(summary) if function is _swapped else summary


def _swapped(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


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

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned, or :class:`Drawn` already: then neither key nor targets are read.
        inputs: array or pytree ``[N, …]``.
        summary_fn: :class:`~baal_jax.Predictions` of a batch ``->`` pytree ``[B, …]``.
        num_samples: ``S``.
        batch_size: ``B``, None for all; fewer where the draws on them would be more than 2²⁸ numbers.
        features: ``(state, inputs [B, …]) -> [B, D]``, offered to ``summary_fn``.
        target_inputs: ``[M, …]`` inputs whose predictions, under the same draws, are offered to ``summary_fn``.

    Returns:
        Pytree ``[N, …]``.

    Example:
        >>> posterior, inputs = posteriors.logistic_regression(2), jnp.eye(3)
        >>> state = posterior.fit(jax.random.key(0), baal.Dataset(inputs, jnp.array([0, 1, 1])), jnp.ones(3, bool))
        >>> score, options = selection.top_k().summarise, {"num_samples": 5, "batch_size": None}
        >>> baal.prediction.summarise(jax.random.key(1), posterior, state, inputs, score, **options).shape
        (3,)
    """
    num_examples = checks.leading_axis("inputs", inputs)
    if not isinstance(state, Drawn):
        state = draw(posterior, num_samples, batch_size, None, key, state, target_inputs)

    def one_batch(batch: PyTree) -> PyTree:
        embeddings = None if features is None else features(state.fitted, batch)
        outputs = _apply(posterior, state.fitted, state.draws, batch)
        return summary_fn(Predictions(outputs, embeddings, state.target_logits))

    size = checks.optional_int("batch_size", batch_size) or max(num_examples, 1)
    if batch_size is not None:
        first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)
        numbers = jax.eval_shape(lambda first: _apply(posterior, state.fitted, state.draws, first), first)
        size = max(1, min(size, _MOST // max(1, sum(leaf.size for leaf in jax.tree.leaves(numbers)))))
    return sources.in_batches(one_batch, inputs, size)


class Drawn(NamedTuple):
    """Stands for a fit in :func:`summarise` where many calls share its draws, and predictions on the target inputs."""

    fitted: Any
    draws: PyTree
    target_logits: PyTree = None
    target_features: PyTree = None


def draw(
    posterior: Posterior,
    num_samples: int,
    batch_size: int | None,
    features: FeatureFn | None,
    key: Key,
    state: Any,
    target_inputs: PyTree = None,
) -> Drawn:
    """Draws, and their outputs on the target inputs; arguments as in :func:`summarise`."""
    checks.typed_key("key", key)
    drawn = Drawn(state, posterior.sample(key, state, checks.positive_int("num_samples", num_samples)))
    if target_inputs is None:
        return drawn
    logits = _summarised(posterior, num_samples, batch_size, _swapped, True, key, drawn, target_inputs)
    of_targets: Any = None
    if features is not None:
        size = batch_size or checks.leading_axis("target_inputs", target_inputs)
        of_targets = sources.in_batches(lambda rows: features(state, rows), target_inputs, size)
    return drawn._replace(target_logits=logits, target_features=of_targets)


def predict_stream(
    key: Key, posterior: Posterior, state: Any, source: sources.Source, *, num_samples: int = 20, batch_size: int = 256
) -> Iterator[PyTree]:
    """Predictions on a source that stays on the host, one batch after the other.

    The next batches are read in a thread while the device works, and padded: one compilation whatever the remainder.

    Args:
        key: a typed key, for the draws.
        posterior: what to draw from.
        state: what ``posterior.fit`` returned.
        source: anything with ``__len__`` and ``__getitem__``. Arrays are sliced, ``__getitems__`` is asked for whole
            batches, other sources for one example at a time. :class:`~baal_jax.data.View` takes inputs out of items.
        num_samples: ``S``.
        batch_size: ``B``.

    Yields:
        NumPy arrays (or pytrees of them) ``[S, b, …, C]``, in the order of the source; ``b`` is ``B`` but for the last.

    Raises:
        ValueError: the source is empty, or a number is not positive.

    Example:
        >>> sample = lambda key, state, num_samples: jax.random.normal(key, (num_samples,))
        >>> scaled = baal.Posterior(fit=None, sample=sample, apply=lambda state, draw, inputs: inputs * draw)
        >>> inputs = np.ones((5, 3), np.float32)
        >>> parts = baal.predict_stream(jax.random.key(0), scaled, None, inputs, num_samples=4, batch_size=2)
        >>> [part.shape for part in parts]
        [(4, 2, 3), (4, 2, 3), (4, 1, 3)]
    """
    drawn = _drawn(key, posterior, state, num_samples)
    run = partial(predict, key, posterior, drawn, num_samples=num_samples, batch_size=None)
    return sources.stream(run, source, batch_size, axis=1)


def _apply(posterior: Posterior, state: Any, draws: PyTree, inputs: PyTree) -> PyTree:
    return jax.vmap(lambda draw: posterior.apply(state, draw, inputs))(draws)
