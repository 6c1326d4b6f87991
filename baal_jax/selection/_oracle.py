"""The best of many batches by their true labels: an upper row of a study's table, in simulation alone."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from baal_jax._util import checks, meshes
from baal_jax.metrics import model_average
from baal_jax.selection._common import compiled, read_features
from baal_jax.typing import Acquisition, Array, Dataset, Key, Posterior, Predictions, PyTree, Selection, Targeted

_DRAWS = 32  # of a head that has more than one


def oracle(
    strategies: Mapping[str, Acquisition],
    head: Posterior,
    targets: Any,
    test_targets: Any,
    *,
    num_batches: int = 10,
    share: float = 0.5,
    by: Literal["nll", "accuracy"] = "nll",
) -> Acquisition:
    """The batch whose true labels make a refitted head best on the test set: how far from the best is a strategy?

    In each round every strategy picks from the pool and from ``num_batches − 1`` random parts of it. A head is fitted
    to the features of what is labelled and of each batch, one after the other in one program, and the batch with the
    lowest negative log-likelihood of the test set, or the highest accuracy, is labelled. It is the best of these
    batches for one step, and no bound: what a batch is good for later it does not see. It reads test labels, so that
    nothing can be used of it.

    ``target_inputs`` of ``run`` or ``study.run`` are the test inputs. The loop needs ``features``: for a pool of
    embeddings ``lambda state, inputs: inputs``, for a network ``baal_jax.features.last_hidden(model)``.

    Args:
        strategies: name → acquisition, of this loop's posterior.
        head: a posterior on features, ``posteriors.logistic_regression(num_classes, point_estimate=True)``; of one with
            more draws the average of 32 counts.
        targets: ``int[N]``, the classes of the whole pool, compiled in unless they are traced.
        test_targets: ``int[M]``, those of the test inputs.
        num_batches: of each strategy.
        share: of the pool that a part holds.
        by: what is best; among equal accuracies the lowest negative log-likelihood.

    Returns:
        An :class:`~baal_jax.Acquisition`; the score of a pick is minus the negative log-likelihood with its batch, or
        the accuracy and something below one test example.

    Raises:
        ValueError: there is no strategy, a class is unknown or not one for each example, or an option out of its range.

    References:
        The best of many batches: `BoSS <https://arxiv.org/abs/2603.13109>`_, 2026.

    Example:
        >>> head = posteriors.logistic_regression(2, point_estimate=True)
        >>> picks = {"margin": selection.top_k(heuristics.margin), "k_center": selection.k_center()}
        >>> selection.oracle(picks, head, jnp.array([0, 1, 1, 0]), jnp.array([0, 1])).reads_labelled
        True
    """
    if not strategies or not all(isinstance(one, Acquisition) for one in strategies.values()):
        raise ValueError(f"strategies={[*strategies]} must be acquisitions by name, at least one")
    num_batches = checks.positive_int("num_batches", num_batches)
    if checks.positive_float("share", share) > 1.0:
        raise ValueError(f"share={share!r} is a part of the pool: at most 1")
    if by not in ("nll", "accuracy"):
        raise ValueError(f"by={by!r} must be 'nll' or 'accuracy'")
    classes, answers = (_known(*named) for named in (("targets", targets), ("test_targets", test_targets)))

    most = max(int(jnp.max(part)) if checks.is_concrete(part) else -1 for part in (classes, answers))

    def summarise(predictions: Predictions) -> PyTree:
        kept = [one.summarise and one.summarise(predictions) for one in strategies.values()]
        return read_features(predictions), kept

    def value(features: Array, test_features: Array, known: Array) -> Array:
        state = head.fit(jax.random.key(0), Dataset(features, classes), known)
        draws = head.sample(jax.random.key(0), state, head.num_draws or _DRAWS)
        logits = model_average(jax.vmap(lambda draw: head.apply(state, draw, test_features))(draws))
        if logits.shape[-1] <= most:
            raise ValueError(f"head has {logits.shape[-1]} classes, but targets hold class {most}: give it as many")
        nll = -jnp.mean(jnp.take_along_axis(logits, answers[:, None], axis=1))
        if by == "nll":
            return -nll
        return jnp.mean(jnp.argmax(logits, axis=1) == answers, dtype=nll.dtype) + 1 / (1 + nll) / len(answers)

    def select(
        key: Key, summary: Targeted, available: Array, query_size: int, labelled: Array | None = None
    ) -> Selection:
        (features, kept), (test_features, theirs) = summary.summary, summary.targets
        for name, rows, given in (("targets", classes, features), ("test_targets", answers, test_features)):
            if rows.shape != given.shape[:1]:
                raise ValueError(f"{name} are of {len(rows)} examples, but features of {len(given)}: give all")
        available, known = jnp.asarray(available), jnp.zeros(available.shape, bool) if labelled is None else labelled
        key_parts, *keys = jax.random.split(key, 1 + len(strategies))
        parts = available[None] & (jax.random.uniform(key_parts, (num_batches, *available.shape)) < share)
        enough = jnp.sum(parts, axis=1, keepdims=True) >= query_size
        parts = jnp.where(enough, parts, available[None]).at[0].set(available)
        batches = []
        for own, one, rows, targets_of in zip(keys, strategies.values(), kept, theirs, strict=True):
            rows = Targeted(rows, targets_of) if one.reads_targets else rows
            ask = partial(_picked, one, rows, query_size, known)
            batches.append(jax.vmap(ask)(jax.random.split(own, num_batches), parts))
        batches = jnp.concatenate(batches)
        taken = jax.vmap(lambda ids: known.at[jnp.where(ids >= 0, ids, len(known))].set(True, mode="drop"))(batches)
        values = jax.lax.map(lambda mask: value(features, test_features, mask), taken)
        best = jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))
        indices = batches[best]
        return Selection(indices, jnp.where(indices >= 0, values[best], jnp.nan).astype(jnp.float32))

    return Acquisition(summarise, compiled(select), reads_labelled=True, reads_targets=True)


def _picked(one: Acquisition, rows: PyTree, query_size: int, known: Array, key: Key, part: Array) -> Array:
    return one.select(key, rows, part, query_size, known).indices


def _known(name: str, targets: Any) -> Array:
    concrete = checks.is_concrete(targets)  # a study of many splits is one program, and its targets are traced
    classes = meshes.on_host(targets) if concrete else targets
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or (concrete and (classes < 0).any()):
        raise ValueError(f"{name} {classes.dtype}{classes.shape} must be known classes, int[N]")
    return jnp.asarray(classes, jnp.int32)
