"""A posterior whose draws are calibrated in every fit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, numerics
from baal_jax.calibration._scalings import Scaling
from baal_jax.prediction import predict
from baal_jax.training.tasks import guarded
from baal_jax.typing import Array, Dataset, Key, Posterior, PyTree, short

_SPLIT, _DRAWS = 0x63616C69, 0x62726174  # far from the small numbers that a fit folds in or splits by


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
    refit: bool | None = None,
    num_samples: int = 20,
    batch_size: int | None = 256,
) -> Posterior:
    """A posterior whose draws are calibrated in every fit.

    A share of the labelled examples, drawn at random in each fit, is held out, the posterior is fitted to the others,
    the scaling to the predictions of its draws on what was held out, and then the posterior again to all labels.
    ``floor(share · labelled)`` examples are held out, never more than half of them; of too few none, and the scaling is
    then the identity. A fit costs two of the posterior's own, and no label is lost to training.

    The posterior is used as it is and gets the key of the fit itself: unless ``refit`` is False, ``state.base`` is bit
    for bit what ``posterior.fit`` returns for the same arguments. A posterior that starts warm has seen before what is
    held out now, so the first of the two fits starts anew; with ``refit=False``, give it ``validation`` instead.

    Args:
        posterior: any posterior of classes with one array of outputs.
        scaling: from :func:`temperature`, :func:`vector`, :func:`dirichlet`, or your own.
        held_out: the share, more than 0 and at most 0.5; 0.2 by default.
        max_held_out: the most examples that are held out. The compiled program predicts this many in every fit.
        validation: labelled examples beside the pool to fit the scaling to; nothing is held out then. They are part of
            the compiled program.
        refit: False keeps the network that the scaling was fitted to: half the cost, and what is held out is lost to
            training. None is True where labels are held out.
        num_samples: ``S``, draws that the scaling is fitted to.
        batch_size: held-out examples in work at a time, None for all.

    Returns:
        A :class:`~baal_jax.Posterior` with state :class:`CalibratedState`; draws are those of ``posterior``.

    Raises:
        ValueError: a number is out of its range, ``validation`` stands beside ``held_out`` or ``refit``, the targets
            are not classes, ``scaling`` is no :class:`Scaling`, or the outputs are not one array.

    Example:
        >>> import baal_jax as baal, flax.linen as nn, optax
        >>> from baal_jax import calibration, heuristics, posteriors, selection
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
    num_samples = checks.positive_int("num_samples", num_samples)
    batch_size = None if batch_size is None else checks.positive_int("batch_size", batch_size)
    if validation is not None:
        if held_out is not None or refit:
            raise ValueError(f"held_out={held_out} and refit={refit} beside validation: leave both out")
        if not checks.leading_axis("validation", validation):
            raise ValueError("validation is empty: give examples, or leave it out to hold labels out")
        _require_classes(validation)
    share = 0.2 if held_out is None else checks.finite_float("held_out", held_out, 0.0)
    if not 0.0 < share <= 0.5:
        raise ValueError(f"held_out={held_out} must be more than 0 and at most 0.5: it is a share of the labels")

    def scale(key: Key, state: Any, examples: Dataset, weights: Array | None) -> PyTree:
        outputs = predict(key, posterior, state, examples.inputs, num_samples=num_samples, batch_size=batch_size)
        return scaling.fit(outputs, jnp.asarray(examples.targets), weights)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: CalibratedState | None = None) -> CalibratedState:
        before = None if previous is None else previous.base
        # fold_in leaves the key itself to the posterior.
        key_split, key_draws = jax.random.fold_in(key, _SPLIT), jax.random.fold_in(key, _DRAWS)
        if validation is not None:
            base = posterior.fit(key, dataset, labelled, before)
            return CalibratedState(base, scale(key_draws, base, validation, None))
        _require_classes(dataset)
        labelled = jnp.asarray(labelled)
        rows, weights = _hold_out(key_split, labelled, share, max_held_out)
        # A row without weight holds nothing out, whichever example it repeats.
        kept = labelled.at[jnp.where(weights, rows, labelled.shape[0])].set(False, mode="drop")
        base = posterior.fit(key, dataset, kept, before if refit is False else None)
        examples = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], dataset)
        params = scale(key_draws, base, examples, weights)
        if refit is not False:  # with the same key, on purpose
            base = posterior.fit(jax.random.clone(key), dataset, labelled, before)
        return CalibratedState(base, params)

    def apply(state: CalibratedState, draw: PyTree, inputs: PyTree) -> Array:
        return scaling.apply(state.params, posterior.apply(state.base, draw, inputs))

    sample = lambda key, state, number: posterior.sample(key, state.base, number)  # noqa: E731
    return guarded(jax.jit(fit), sample, apply, posterior.task)._replace(num_draws=posterior.num_draws)


def _require_classes(dataset: Dataset) -> None:
    kind = None if dataset.targets is None else jnp.asarray(dataset.targets).dtype
    if kind is None or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(f"targets are {kind}, but a scaling is fitted to integer classes: pass int[N, …]")


def _hold_out(key: Key, labelled: Array, share: float, most: int) -> tuple[Array, Array]:
    """``(ids int32[K], bool[K])``: which examples are held out, and which of these rows do not count."""
    most = min(most, labelled.shape[0])
    number = jnp.sum(labelled, dtype=jnp.int32)
    # A little more than the share, so that 0.3 of 10 is 3 in float32, too.
    wanted = jnp.floor(number.astype(jnp.float32) * np.float32(share) + 1e-3).astype(jnp.int32)
    wanted = jnp.minimum(jnp.minimum(wanted, number // 2), most)
    # By the place among the labelled, so that a fit to these alone (a pool on the host) holds out the same.
    place = jnp.maximum(jnp.cumsum(labelled, dtype=jnp.int32) - 1, 0)
    values = numerics.rank_values(jax.random.uniform(key, labelled.shape, jnp.float32)[place], labelled)
    ids = numerics.top_indices(values, most)
    return jnp.maximum(ids, 0), jnp.arange(most, dtype=jnp.int32) < wanted
