"""Fitting a network to the labelled part of a data set, as one compiled function of fixed shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax import _checks, _random
from baal_jax.models import require_stochastic
from baal_jax.semi_supervised import Consistency
from baal_jax.typing import Array, Dataset, Fit, Key, Model, PyTree, Trainer, Variables

if TYPE_CHECKING:
    import optax


class TrainState(NamedTuple):
    """A trained network.

    Attributes:
        variables: weights and batch statistics.
        opt_state: state of the optimizer, in which methods such as SWAG keep their moments.
        steps: ``int32[]``, updates since the weights were initialised.
        loss: ``float32[]``, running mean of the training loss over about the last 50 steps.
    """

    variables: Variables
    opt_state: PyTree
    steps: Array
    loss: Array


def trainer(
    optimizer: optax.GradientTransformation,
    loss: Callable[[PyTree, Array], Array],
    *,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    batch_size: int = 32,
    augment: Callable[[Key, Dataset], Dataset] | None = None,
    regularizer: Callable[[PyTree], Array] | None = None,
    average_from: float | None = None,
    warm_start: bool = False,
    unlabelled: Consistency | None = None,
    unlabelled_batch_size: int | None = None,
) -> Trainer:
    r"""A training procedure: from a model to its pure, compiled ``fit``.

    Batches are read from an endless stream of shuffled passes over the labelled examples, so every example is seen
    equally often, whatever the batch size. Shapes do not depend on how many examples are labelled: a growing labelled
    set never compiles again. Parameters, batch statistics and optimizer state start afresh in every fit, unless
    ``warm_start``. With nothing labelled the loss is zero.

    With ``unlabelled``, every step also reads ``U`` inputs from shuffled passes over all examples, whatever their
    targets, which are never looked at. The first view of them is put behind the labelled batch for one pass through the
    network, the second has a pass of its own. Batch statistics come from the first of these passes, so from labelled
    and unlabelled inputs alike. With a consistency of weight zero, a network without batch statistics learns what it
    would learn without ``unlabelled``, up to rounding.

    Args:
        optimizer: any optax transformation; weight decay and schedules belong here.
        loss: ``(outputs [B, …, C], targets [B, …]) -> [B]``, one number an example.
        num_steps: number of updates, or
        num_epochs: number of passes over the labelled examples (exactly one of the two). The last batch counts only
            its share. Unlabelled inputs are read ``U`` a step meanwhile, however many passes that makes.
        batch_size: ``B``.
        augment: ``(key, batch) -> batch``, on a :class:`~baal_jax.Dataset` of ``B`` examples, compiled in.
        regularizer: ``params -> float``, added to the mean loss.
        average_from: stochastic weight averaging from this share of the steps on: with 0.75 the fit returns the mean
            of the weights over the last quarter, and batch statistics estimated anew for them on 100 batches. None
            returns the last weights. The learning rate should stay high meanwhile.
        warm_start: continue from the parameters and the optimizer state of the round before.
        unlabelled: what to learn from inputs without targets, from :mod:`baal_jax.semi_supervised`; its value is part
            of the reported loss. None trains on the labelled examples alone.
        unlabelled_batch_size: ``U``, by default ``batch_size``.

    Returns:
        ``model -> fit``, with ``fit(key, dataset, labelled bool[N], previous=None) -> TrainState``. ``fit`` is jitted;
        with ``num_steps`` it can be differentiated in reverse.

    Raises:
        ValueError: both or neither of ``num_steps`` and ``num_epochs``, a value that is not positive, an
            ``average_from`` outside of [0, 1), or ``unlabelled`` is no :class:`~baal_jax.semi_supervised.Consistency`.

    References:
        Izmailov et al., `Averaging weights leads to wider optima and better generalization
        <https://arxiv.org/abs/1803.05407>`_, 2018.

    Example:
        >>> import baal_jax as baal, optax, flax.linen as nn
        >>> train = baal.Dataset(jnp.eye(4), jnp.array([0, 1, 0, 1]))
        >>> fit = baal.trainer(optax.adam(0.1), baal.losses.cross_entropy, num_steps=50)(baal.from_linen(nn.Dense(2)))
        >>> state = fit(jax.random.key(0), train, jnp.array([True, True, False, False]))
        >>> int(state.steps), bool(state.loss < 0.1)
        (50, True)
    """
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(f"num_steps={num_steps} and num_epochs={num_epochs}: give exactly one of the two")
    batch_size = _checks.positive_int("batch_size", batch_size)
    if num_steps is not None:
        num_steps = _checks.positive_int("num_steps", num_steps)
    else:
        num_epochs = _checks.positive_int("num_epochs", num_epochs)

    if average_from is not None and not 0.0 <= average_from < 1.0:
        raise ValueError(f"average_from={average_from} must be at least 0 and less than 1: it is a share of the steps")
    num_unlabelled = _unlabelled_batch_size(unlabelled, unlabelled_batch_size, batch_size)

    def bind(model: Model) -> Fit:
        update = _update_step(model, optimizer, loss, batch_size, augment, regularizer, unlabelled)

        def fit(key: Key, dataset: Dataset, labelled: Array, previous: TrainState | None = None) -> TrainState:
            num_examples = _checks.leading_axis("dataset", dataset)
            labelled = jnp.asarray(labelled)
            if labelled.shape != (num_examples,):
                raise ValueError(f"labelled has shape {labelled.shape}, but the data set {num_examples} examples")
            # The first three are the same with and without a fourth.
            key_init, key_order, key_steps, *key_unlabelled = jax.random.split(key, 3 if unlabelled is None else 4)
            state = _initial_state(key_init, model, optimizer, dataset)
            views = None
            if unlabelled is not None:
                _require_two_views(unlabelled, augment, model, state.variables, dataset.inputs)
                key_inputs, key_views = jax.random.split(*key_unlabelled)
                views = _ViewStream(key_inputs, key_views, num_examples, num_unlabelled)
            if warm_start and previous is not None:
                state = jax.tree.map(lambda old, new: jnp.where(previous.steps > 0, old, new), previous, state)
            ids = jnp.flatnonzero(labelled, size=num_examples, fill_value=0)
            stream = _Stream(key_order, ids, jnp.sum(labelled, dtype=jnp.int32))

            def plan(index: Array) -> _Plan:
                key_step = jax.random.fold_in(_random.vectorised(key_steps), index)
                inputs = None if views is None else views.plan(index)
                return _Plan(index, key_step, *stream.batch(index, batch_size, num_epochs), inputs)

            def views_in(planned: _Plan) -> _Views | None:
                if unlabelled is None or planned.unlabelled is None:
                    return None
                return _two_views(unlabelled, augment, *planned.unlabelled, dataset.inputs)

            total: Array | int = num_steps or 0
            if num_epochs is not None:
                total = (stream.size * num_epochs + batch_size - 1) // batch_size

            def step(carry: tuple[TrainState, PyTree], planned: _Plan) -> tuple:
                state, average = carry
                batch = jax.tree.map(lambda leaf: leaf[planned.ids], dataset)
                state = update(planned.key, state, batch, planned.weights, views_in(planned))
                if average_from is not None:
                    before = planned.number - _share(average_from, total)
                    average = _running_mean(average, state.variables.params, before)
                return (state, average), None

            carry = state, None if average_from is None else state.variables.params
            if num_epochs is not None:
                carry = jax.lax.fori_loop(
                    0, total, lambda index, carry: step(carry, plan(index.astype(jnp.int32)))[0], carry
                )
            else:
                # Planning all steps at once keeps some forty small operations out of the loop.
                carry = jax.lax.scan(step, carry, jax.vmap(plan)(jnp.arange(num_steps, dtype=jnp.int32)), unroll=2)[0]
            state, average = carry
            if average is None:
                return state
            variables = Variables(average, state.variables.collections)

            def inputs_of(index: Array) -> tuple[Key, PyTree]:
                planned = plan(total + index)  # what would come next
                key_augment, key_model = jax.random.split(planned.key)
                batch = jax.tree.map(lambda leaf: leaf[planned.ids], dataset)
                inputs = (batch if augment is None else augment(key_augment, batch)).inputs
                seen = views_in(planned)
                return key_model, inputs if seen is None else _joined(inputs, seen.first)

            return state._replace(variables=_with_new_statistics(model, variables, inputs_of))

        return jax.jit(fit)

    return bind


def _share(average_from: float, total: Array | int) -> Array:
    """The first step that counts."""
    first = jnp.floor(average_from * jnp.asarray(total, jnp.float32)).astype(jnp.int32)
    return jnp.minimum(first, jnp.asarray(total, jnp.int32) - 1)


def _running_mean(average: PyTree, params: PyTree, before: Array) -> PyTree:
    """Mean of the weights, ``before`` steps of which it holds already; untouched while that is negative."""
    import optax

    def update() -> PyTree:
        share = 1.0 / (before.astype(jnp.float32) + 1.0)
        with jax.numpy_dtype_promotion("standard"):
            mean = optax.incremental_update(params, average, share)
        return jax.tree.map(lambda leaf, old: _as_dtype(leaf, old.dtype), mean, average)

    return jax.lax.cond(before >= 0, update, lambda: average)


def _with_new_statistics(
    model: Model, variables: Variables, inputs_of: Callable[[Array], tuple[Key, PyTree]]
) -> Variables:
    """Batch statistics that belong to the averaged weights, from 100 batches.

    A running mean keeps a share of what it started from: 37 % of it with a momentum of 0.99. Two starts that differ by
    one end apart by that share, and so it can be taken out.
    """
    old = variables.collections
    if not jax.tree.leaves(old):
        return variables

    def is_float(leaf: Array) -> bool:
        return jnp.issubdtype(leaf.dtype, jnp.floating)

    def step(index: Array, carried: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        key, inputs = inputs_of(index.astype(jnp.int32))
        # Training reads no running statistics: the compiler runs the network once for both.
        new = [model.train(Variables(variables.params, collections), inputs, key)[1] for collections in carried]
        cast = [
            jax.tree.map(lambda leaf, old: _as_dtype(leaf, old.dtype), *pair) for pair in zip(new, carried, strict=True)
        ]
        return cast[0], cast[1]

    shifted = jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype) if is_float(leaf) else leaf, old)
    ends = jax.lax.fori_loop(0, 100, step, (old, shifted))

    def without_start(start: Array, end: Array, other_end: Array) -> Array:
        if not is_float(end):
            return end
        share = other_end - end
        running = (share > 1e-3) & (share < 0.999)
        return jnp.where(running, (end - share * start) / jnp.where(running, 1 - share, 1), end).astype(end.dtype)

    return variables._replace(collections=jax.tree.map(without_start, old, *ends))


def _initial_state(key: Key, model: Model, optimizer: optax.GradientTransformation, dataset: Dataset) -> TrainState:
    variables = model.init(key, jax.tree.map(lambda leaf: leaf[:1], dataset.inputs))
    state = TrainState(
        variables, optimizer.init(variables.params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    )
    return jax.tree.map(_strong, state)


def _strong(leaf: Array) -> Array:
    """Without weak types, which would change between the first round and the second."""
    return _as_dtype(leaf, jnp.asarray(leaf).dtype)


def _as_dtype(leaf: Array, dtype: jnp.dtype) -> Array:
    return leaf if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.asarray(leaf).astype(dtype)


class _Stream(NamedTuple):
    """Shuffled passes over the labelled ids, one after the other."""

    key: Key
    ids: Array  # labelled ids first
    size: Array

    def batch(self, index: Array, batch_size: int, num_epochs: int | None) -> tuple[Array, Array]:
        """Ids of the ``index``-th batch, and weights: zero beyond the last pass and where nothing is labelled."""
        size = jnp.maximum(self.size, 1)
        positions = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        passes = positions // size
        keys = jax.vmap(lambda i: jax.random.fold_in(_random.vectorised(self.key), i))(passes)
        order = jax.vmap(lambda key, i: _random.shuffled(key, i, size))(keys, positions - passes * size)
        weights = jnp.full(batch_size, self.size > 0)
        if num_epochs is not None:
            weights &= passes < num_epochs
        return self.ids[order], weights.astype(jnp.float32)


class _Plan(NamedTuple):
    """What a step reads."""

    number: Array
    key: Key
    ids: Array  # int32[B]
    weights: Array  # float32[B]
    unlabelled: tuple[Key, Array] | None  # a key for the views, int32[U]


class _Views(NamedTuple):
    """Two views of the same inputs."""

    first: PyTree
    second: PyTree
    key: Key  # of the pass of the second view


class _ViewStream(NamedTuple):
    """Shuffled passes over all examples, and keys for their views."""

    key_inputs: Key
    key_views: Key
    num_examples: int
    batch_size: int

    def plan(self, index: Array) -> tuple[Key, Array]:
        everything = jnp.arange(self.num_examples, dtype=jnp.int32)
        stream = _Stream(self.key_inputs, everything, jnp.asarray(self.num_examples, jnp.int32))
        key = jax.random.fold_in(_random.vectorised(self.key_views), index)
        return key, stream.batch(index, self.batch_size, None)[0]


def _two_views(
    consistency: Consistency,
    augment: Callable[[Key, Dataset], Dataset] | None,
    key: Key,
    ids: Array,
    inputs: PyTree,
) -> _Views:
    key_first, key_second, key_model = jax.random.split(key, 3)
    batch = Dataset(jax.tree.map(lambda leaf: leaf[ids], inputs))

    def view(change: Callable[[Key, Dataset], Dataset] | None, key: Key) -> PyTree:
        change = augment if change is None else change
        return (batch if change is None else change(key, batch)).inputs

    return _Views(view(consistency.first, key_first), view(consistency.second, key_second), key_model)


def _joined(labelled: PyTree, unlabelled: PyTree) -> PyTree:
    """One batch, the labelled examples first."""
    shapes = [jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), tree) for tree in (labelled, unlabelled)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"augmentation makes (shape, dtype) {shapes[1]} of unlabelled inputs, but {shapes[0]} of labelled ones, "
            "and they share a pass through the network: let both return the same"
        )
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), labelled, unlabelled)


def _unlabelled_batch_size(consistency: Consistency | None, value: int | None, batch_size: int) -> int:
    if consistency is None and value is not None:
        raise ValueError(f"unlabelled_batch_size={value} without unlabelled: pass semi_supervised.pi_model(…) there")
    if consistency is not None and not isinstance(consistency, Consistency):
        raise ValueError(f"unlabelled={consistency!r} must be made by semi_supervised.pi_model(…) or fix_match(…)")
    return batch_size if value is None else _checks.positive_int("unlabelled_batch_size", value)


def _require_two_views(
    consistency: Consistency,
    augment: Callable[[Key, Dataset], Dataset] | None,
    model: Model,
    variables: Variables,
    inputs: PyTree,
) -> None:
    if consistency.first is None and consistency.second is None and augment is None:
        try:
            require_stochastic(model, variables, jax.tree.map(lambda leaf: leaf[:1], inputs))
        except ValueError as error:
            if "does not depend on the key" not in str(error):
                raise
            raise ValueError(
                "unlabelled compares two views of an input, but the model's output does not depend on the key and "
                "nothing is augmented, so they would be the same: add dropout or an augmentation"
            ) from error


def _disagreement(consistency: Consistency, first: PyTree, second: PyTree, batch_size: int) -> Array:
    values = consistency.loss(first, second)
    if values.shape[:1] != (batch_size,):
        raise ValueError(
            f"the loss of unlabelled returned shape {values.shape}, but one number for each of the {batch_size} inputs "
            "is needed: leave out the mean, the trainer takes it"
        )
    return jnp.mean(values.astype(jnp.float32))


def _update_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: Callable[[PyTree, Array], Array],
    batch_size: int,
    augment: Callable[[Key, Dataset], Dataset] | None,
    regularizer: Callable[[PyTree], Array] | None,
    consistency: Consistency | None,
) -> Callable[[Key, TrainState, Dataset, Array, _Views | None], TrainState]:
    import optax

    def objective(
        params: PyTree, state: TrainState, batch: Dataset, weights: Array, key: Key, views: _Views | None
    ) -> tuple[Array, PyTree]:
        variables = Variables(params, state.variables.collections)
        inputs = batch.inputs if views is None else _joined(batch.inputs, views.first)
        all_outputs, collections = model.train(variables, inputs, key)
        outputs = all_outputs if views is None else jax.tree.map(lambda leaf: leaf[:batch_size], all_outputs)
        losses = loss(outputs, batch.targets)
        if losses.shape[:1] != (batch_size,):
            raise ValueError(
                f"loss returned shape {losses.shape}, but one number for each of the {batch_size} examples is needed: "
                "leave out the mean, the trainer takes it"
            )
        losses = jnp.mean(losses.astype(jnp.float32), axis=tuple(range(1, losses.ndim)))
        mean = jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1.0)
        if consistency is not None and views is not None:
            first = jax.tree.map(lambda leaf: leaf[batch_size:], all_outputs)
            second, _ = model.train(variables, views.second, views.key)
            disagreement = _disagreement(consistency, first, second, jax.tree.leaves(first)[0].shape[0])
            weight = jnp.asarray(consistency.weight(state.steps)).astype(mean.dtype)
            mean += weight * jnp.max(weights) * disagreement  # zero where nothing is labelled
        if regularizer is not None:
            mean += jnp.asarray(regularizer(params)).astype(mean.dtype)
        return mean, collections

    def update(key: Key, state: TrainState, batch: Dataset, weights: Array, views: _Views | None) -> TrainState:
        key_augment, key_model = jax.random.split(key)
        if augment is not None:
            batch = augment(key_augment, batch)
        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        variables = state.variables
        (value, collections), gradients = value_and_grad(variables.params, state, batch, weights, key_model, views)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes Python floats and integer counts
            updates, opt_state = optimizer.update(gradients, state.opt_state, variables.params)
            params = optax.apply_updates(variables.params, updates)
        steps = state.steps + 1
        share = jnp.maximum(1.0 / steps.astype(jnp.float32), 0.02)
        new = TrainState(Variables(params, collections), opt_state, steps, state.loss + share * (value - state.loss))
        return jax.tree.map(lambda leaf, old: _as_dtype(leaf, old.dtype), new, state)

    return update
