"""A posterior whose draws are calibrated in every fit."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, numerics
from baal_jax.calibration import _optimum as optimum
from baal_jax.calibration._scalings import Scaling
from baal_jax.prediction import predict
from baal_jax.training.tasks import guarded
from baal_jax.typing import Array, Dataset, Key, Posterior, PyTree, short

_SPLIT, _DRAWS = 0x63616C69, 0x62726174  # far from the small numbers that a fit folds in or splits by
_FOLDS, _UNSEEN = 5, 0.632


class CalibratedState(NamedTuple):
    """State of :func:`calibrated`.

    Attributes:
        base: state of the posterior, as its own ``fit`` returned it.
        params: parameters of the scaling.
    """

    base: Any
    params: PyTree

    @property
    def variables(self) -> Any:
        """The network of the base state, for what reads a single one (``features``)."""
        return self.base.variables

    __repr__ = short


def calibrated(
    posterior: Posterior,
    scaling: Scaling,
    *,
    held_out: float | None = None,
    max_held_out: int = 256,
    validation: Dataset | None = None,
    num_samples: int = 20,
    batch_size: int | None = 256,
) -> Posterior:
    """A posterior whose draws are calibrated in every fit.

    By default it is cross-fitted: up to ``max_held_out`` labelled examples are split into five parts, and each part is
    predicted by a fit to all labels but these. The scaling is fitted to that with weight .632, and with weight .368 to
    what the fit to all labels, which stays, predicts of them (Efron and Tibshirani). If it gains nothing on the unseen,
    or with fewer than five labels, the scaling is the identity. A fit costs six of the posterior's.

    With ``held_out`` one part is drawn, ``floor(share · labelled)`` examples and never more than half of them. That
    costs two fits, but of few labels much depends on which are drawn.

    ``state.base`` is bit for bit what ``posterior.fit`` returns for the same arguments. Other fits never start warm.

    Args:
        posterior: any posterior of classes with one array of outputs.
        scaling: from :func:`temperature`, :func:`vector`, :func:`dirichlet`, or your own.
        held_out: the share of a single split, more than 0 and at most 0.5; None for cross-fitting.
        max_held_out: the most examples that are held out. The compiled program predicts this many in every fit.
        validation: labelled examples beside the pool to fit to, part of the program; nothing is held out then.
        num_samples: ``S``, draws that the scaling is fitted to.
        batch_size: held-out examples in work at a time, None for all.

    Returns:
        A :class:`~baal_jax.Posterior` with state :class:`CalibratedState`; draws are those of ``posterior``.

    Raises:
        ValueError: a number is out of its range, ``validation`` stands beside ``held_out``, the targets
            are not classes, ``scaling`` is no :class:`Scaling`, or the outputs are not one array.

    References:
        Efron & Tibshirani, `Improvements on cross-validation: the .632+ bootstrap method
        <https://doi.org/10.1080/01621459.1997.10474007>`_, 1997.

    Example:
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> base = posteriors.deep_ensemble(baal.from_linen(nn.Dense(2)), trainer, num_members=2)
        >>> posterior = calibration.calibrated(base, calibration.temperature(), num_samples=2)
        >>> loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=1, num_samples=2)
        >>> train = baal.Dataset(jnp.eye(8), jnp.arange(8) % 2)
        >>> state, info = loop.step(loop.init(jax.random.key(0), train, num_initial=5), train)
        >>> bool(state.posterior.params.temperature > 0)
        True
    """
    if not isinstance(scaling, Scaling):
        raise ValueError(f"scaling={scaling!r} is no Scaling: call its builder, as in calibration.temperature()")
    max_held_out = checks.positive_int("max_held_out", max_held_out)
    sizes: dict[str, Any] = {"num_samples": checks.positive_int("num_samples", num_samples)}
    sizes["batch_size"] = checks.optional_int("batch_size", batch_size)
    if validation is not None:
        if held_out is not None:
            raise ValueError(f"held_out={held_out} beside validation: leave one of them out")
        if not checks.leading_axis("validation", validation):
            raise ValueError("validation is empty: give examples, or leave it out to hold labels out")
        _require_classes(validation)
    folds = _FOLDS if held_out is None else 1
    if held_out is not None and not 0.0 < (held_out := checks.finite_float("held_out", held_out, 0.0)) <= 0.5:
        raise ValueError(f"held_out={held_out} must be more than 0 and at most 0.5: it is a share of the labels")
    outputs_of = lambda key, state, inputs: predict(key, posterior, state, inputs, **sizes)  # noqa: E731

    def unseen(key: Key, dataset: Dataset, labelled: Array, rows: Array, counts: Array) -> Array:
        """Outputs of every row by a fit without it, and without those of its fold."""

        def fold(each: tuple[Key, Array, Array]) -> Array:
            key, rows, counts = each
            key_fit, key_draws = jax.random.split(key)
            # A row that does not count holds nothing out, whichever example it repeats.
            kept = labelled.at[jnp.where(counts, rows, labelled.shape[0])].set(False, mode="drop")
            return outputs_of(key_draws, posterior.fit(key_fit, dataset, kept, None), _taken(dataset.inputs, rows))

        parts = (part.reshape(-1, folds).T for part in (rows, counts))  # the first rows count, so they take turns
        outputs = jnp.moveaxis(jax.lax.map(fold, (jax.random.split(key, folds), *parts)), 0, 2)  # [S, of one, folds, …]
        return outputs.reshape(outputs.shape[0], -1, *outputs.shape[3:])

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: CalibratedState | None = None) -> CalibratedState:
        # fold_in leaves the key itself to the posterior.
        key_split, key_draws = jax.random.fold_in(key, _SPLIT), jax.random.fold_in(key, _DRAWS)
        base = posterior.fit(key, dataset, labelled, None if previous is None else previous.base)
        if validation is not None:
            outputs = outputs_of(key_draws, base, validation.inputs)
            return CalibratedState(base, scaling.fit(outputs, jnp.asarray(validation.targets), None))
        _require_classes(dataset)
        labelled = jnp.asarray(labelled)
        number = jnp.sum(labelled, dtype=jnp.int32)
        # A little more than the share, so that 0.3 of 10 is 3 in float32, too.
        wanted = jnp.floor(number.astype(jnp.float32) * np.float32(held_out or 1.0) + 1e-3).astype(jnp.int32)
        wanted = jnp.where(number < folds, 0, wanted) if held_out is None else jnp.minimum(wanted, number // 2)
        rows = _in_random_order(key_split, labelled, max_held_out)
        rows = jnp.pad(rows, (0, -rows.size % folds))
        counts = jnp.arange(rows.size, dtype=jnp.int32) < jnp.minimum(wanted, max_held_out)
        key_folds, key_draws = jax.random.split(key_draws)
        examples = _taken(dataset, rows)
        outputs = unseen(key_folds, dataset, labelled, rows, counts), outputs_of(key_draws, base, examples.inputs)
        targets = jnp.concatenate([examples.targets] * 2)
        weights = jnp.concatenate([jnp.where(counts, np.float32(part), 0) for part in (_UNSEEN, 1.0 - _UNSEEN)])
        both = jnp.concatenate(outputs, axis=1)
        fitted, identity = (scaling.fit(both, targets, share) for share in (weights, jnp.zeros_like(weights)))
        # What was seen is no evidence: a network may be less sure of all its labels than it is right.
        problem = optimum.make_problem(outputs[0], examples.targets, counts)
        holds = optimum.gains(problem, partial(scaling.apply, fitted))
        return CalibratedState(base, jax.tree.map(lambda new, old: jnp.where(holds, new, old), fitted, identity))

    def apply(state: CalibratedState, draw: PyTree, inputs: PyTree) -> Array:
        return scaling.apply(state.params, posterior.apply(state.base, draw, inputs))

    sample = lambda key, state, number: posterior.sample(key, state.base, number)  # noqa: E731
    return guarded(jax.jit(fit), sample, apply, posterior.task)._replace(num_draws=posterior.num_draws)


def _require_classes(dataset: Dataset) -> None:
    kind = None if dataset.targets is None else jnp.asarray(dataset.targets).dtype
    if kind is None or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(f"targets are {kind}, but a scaling is fitted to integer classes: pass int[N, …]")


def _taken(tree: PyTree, rows: Array) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], tree)


def _in_random_order(key: Key, labelled: Array, most: int) -> Array:
    """``int32[K]`` ids of labelled examples, at most ``most``; zeros where there are fewer."""
    # By the place among the labelled, so that a fit to these alone (a pool on the host) holds out the same.
    place = jnp.maximum(jnp.cumsum(labelled, dtype=jnp.int32) - 1, 0)
    values = numerics.rank_values(jax.random.uniform(key, labelled.shape, jnp.float32)[place], labelled)
    return jnp.maximum(numerics.top_indices(values, min(most, labelled.shape[0])), 0)
