"""Fitting a network to the labelled part of a data set, as one compiled function of fixed shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, random
from baal_jax.models import require_stochastic
from baal_jax.training import averaging
from baal_jax.training.batches import Stream, ViewStream
from baal_jax.training.semi_supervised import Consistency
from baal_jax.typing import Array, Dataset, Fit, Key, Model, Penalty, PyTree, Trainer, TrainState, Variables

if TYPE_CHECKING:
    import optax


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
    validation: Dataset | None = None,
    validate_every: int = 50,
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
        validation: labelled examples beside the pool that decide which weights are returned: those with the smallest
            mean loss, without randomness, among the weights of every ``validate_every``-th step and the last. They are
            part of the compiled program. None returns the last weights.
        validate_every: steps between two looks at ``validation``.
        unlabelled: what to learn from inputs without targets, from :mod:`baal_jax.training.semi_supervised`; its
            value is part of the reported loss. None trains on the labelled examples alone.
        unlabelled_batch_size: ``U``, by default ``batch_size``.

    Returns:
        ``model -> fit``, with ``fit(key, dataset, labelled bool[N], previous=None) -> TrainState``. ``fit`` is jitted;
        with ``num_steps`` it can be differentiated in reverse. What a posterior needs of training it adds there:
        see :class:`~baal_jax.typing.Trainer`.

    Raises:
        ValueError: both or neither of ``num_steps`` and ``num_epochs``, a value that is not positive, an
            ``average_from`` outside of [0, 1) or beside ``validation``, or ``unlabelled`` is no
            :class:`~baal_jax.training.semi_supervised.Consistency`.

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
    batch_size = checks.positive_int("batch_size", batch_size)
    if num_steps is not None:
        num_steps = checks.positive_int("num_steps", num_steps)
    else:
        num_epochs = checks.positive_int("num_epochs", num_epochs)

    if average_from is not None and not 0.0 <= average_from < 1.0:
        raise ValueError(f"average_from={average_from} must be at least 0 and less than 1: it is a share of the steps")
    if validation is not None and average_from is not None:
        raise ValueError(
            f"average_from={average_from} beside validation: give one, both decide which weights to return"
        )
    if validation is not None:
        checks.leading_axis("validation", validation)
    recipe = _Recipe(
        optimizer=optimizer,
        loss=loss,
        num_steps=num_steps,
        num_epochs=num_epochs,
        batch_size=batch_size,
        augment=augment,
        regularizer=regularizer,
        average_from=average_from,
        warm_start=warm_start,
        validation=validation,
        validate_every=checks.positive_int("validate_every", validate_every),
        consistency=unlabelled,
        num_unlabelled=_unlabelled_batch_size(unlabelled, unlabelled_batch_size, batch_size),
    )

    def bind(model: Model, *, penalty: Penalty | None = None, transform: Any = None) -> Fit:
        return jax.jit(_make_fit(recipe, model, penalty, transform))

    return bind


class _Recipe(NamedTuple):
    """What :func:`trainer` was asked for."""

    optimizer: optax.GradientTransformation
    loss: Callable[[PyTree, Array], Array]
    num_steps: int | None
    num_epochs: int | None
    batch_size: int
    augment: Callable[[Key, Dataset], Dataset] | None
    regularizer: Callable[[PyTree], Array] | None
    average_from: float | None
    warm_start: bool
    validation: Dataset | None
    validate_every: int
    consistency: Consistency | None
    num_unlabelled: int


class _Carry(NamedTuple):
    """What goes from step to step."""

    state: TrainState
    average: PyTree  # of the parameters, or None
    best: tuple[Array, Variables] | None  # smallest validation loss, and its weights


def _make_fit(recipe: _Recipe, model: Model, penalty: Penalty | None, transform: Any) -> Fit:
    import optax

    if transform is not None:
        recipe = recipe._replace(optimizer=optax.chain(recipe.optimizer, transform))
    update = _update_step(recipe, model, penalty, transform is not None)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: TrainState | None = None) -> TrainState:
        num_examples = checks.leading_axis("dataset", dataset)
        labelled = jnp.asarray(labelled)
        if labelled.shape != (num_examples,):
            raise ValueError(f"labelled has shape {labelled.shape}, but the data set {num_examples} examples")
        # The first three are the same with and without a fourth.
        key_init, key_order, key_steps, *key_views = jax.random.split(key, 3 if recipe.consistency is None else 4)
        state = _initial_state(key_init, model, recipe.optimizer, dataset)
        if recipe.warm_start and previous is not None:
            state = jax.tree.map(lambda old, new: jnp.where(previous.steps > 0, old, new), previous, state)
        ids = jnp.flatnonzero(labelled, size=num_examples, fill_value=0)
        stream = Stream(key_order, ids, jnp.sum(labelled, dtype=jnp.int32))
        reader = _reader(recipe, model, state.variables, dataset, stream, key_steps, key_views)
        total: Array | int = recipe.num_steps or 0
        if recipe.num_epochs is not None:
            total = (stream.size * recipe.num_epochs + recipe.batch_size - 1) // recipe.batch_size

        def step(carry: _Carry, planned: _Plan) -> _Carry:
            seen = reader.views(planned)
            state = update(planned.key, carry.state, reader.batch(planned), planned.weights, seen, stream.size, total)
            average, best = carry.average, carry.best
            if recipe.average_from is not None:
                before = planned.number - averaging.share(recipe.average_from, total)
                average = averaging.running_mean(average, state.variables.params, before)
            if best is not None:
                best = _better(recipe, model, best, state.variables, planned.number + 1, total)
            return _Carry(state, average, best)

        carry = _loop(recipe, step, reader.plan, total, _start(recipe, state))
        if carry.best is not None:
            return carry.state._replace(variables=carry.best[1])
        if recipe.average_from is None:
            return carry.state
        variables = Variables(carry.average, carry.state.variables.collections)
        read = partial(_inputs_after, recipe, reader, total)
        return carry.state._replace(variables=averaging.with_new_statistics(model, variables, read))

    return fit


def _start(recipe: _Recipe, state: TrainState) -> _Carry:
    average = None if recipe.average_from is None else state.variables.params
    best = None if recipe.validation is None else (jnp.full((), jnp.inf, jnp.float32), state.variables)
    return _Carry(state, average, best)


def _loop(
    recipe: _Recipe,
    step: Callable[[_Carry, _Plan], _Carry],
    plan: Callable[[Array], _Plan],
    total: Array | int,
    carry: _Carry,
) -> _Carry:
    if recipe.num_steps is None:
        return jax.lax.fori_loop(0, total, lambda index, carry: step(carry, plan(index.astype(jnp.int32))), carry)
    # Planning all steps at once keeps some forty small operations out of the loop.
    plans = jax.vmap(plan)(jnp.arange(recipe.num_steps, dtype=jnp.int32))
    return jax.lax.scan(lambda carry, planned: (step(carry, planned), None), carry, plans, unroll=2)[0]


class _Reader(NamedTuple):
    """What a step reads: ``plan(number)`` says which examples, the other two fetch them."""

    plan: Callable[[Array], _Plan]
    batch: Callable[[_Plan], Dataset]
    views: Callable[[_Plan], _Views | None]


def _reader(
    recipe: _Recipe,
    model: Model,
    variables: Variables,
    dataset: Dataset,
    stream: Stream,
    key_steps: Key,
    key_views: list[Key],
) -> _Reader:
    unlabelled = None
    if recipe.consistency is not None:
        _require_two_views(recipe.consistency, recipe.augment, model, variables, dataset.inputs)
        key_inputs, key_augment = jax.random.split(key_views[0])
        unlabelled = ViewStream(key_inputs, key_augment, stream.ids.shape[0], recipe.num_unlabelled)

    def plan(index: Array) -> _Plan:
        key_step = jax.random.fold_in(random.vectorised(key_steps), index)
        inputs = None if unlabelled is None else unlabelled.plan(index)
        return _Plan(index, key_step, *stream.batch(index, recipe.batch_size, recipe.num_epochs), inputs)

    def batch(planned: _Plan) -> Dataset:
        return jax.tree.map(lambda leaf: leaf[planned.ids], dataset)

    def views(planned: _Plan) -> _Views | None:
        if recipe.consistency is None or planned.unlabelled is None:
            return None
        return _two_views(recipe.consistency, recipe.augment, *planned.unlabelled, dataset.inputs)

    return _Reader(plan, batch, views)


def _inputs_after(recipe: _Recipe, reader: _Reader, total: Array | int, index: Array) -> tuple[Key, PyTree]:
    """What would come ``index`` steps after the last one."""
    planned = reader.plan(total + index)
    key_augment, key_model = jax.random.split(planned.key)
    batch = reader.batch(planned)
    inputs = (batch if recipe.augment is None else recipe.augment(key_augment, batch)).inputs
    seen = reader.views(planned)
    return key_model, inputs if seen is None else _joined(inputs, seen.first)


def _better(
    recipe: _Recipe,
    model: Model,
    best: tuple[Array, Variables],
    variables: Variables,
    steps: Array,
    total: Array | int,
) -> tuple[Array, Variables]:
    """The best weights so far, looked for every ``validate_every`` steps and after the last."""

    def look() -> tuple[Array, Variables]:
        assert recipe.validation is not None
        losses = recipe.loss(model.deterministic(variables, recipe.validation.inputs), recipe.validation.targets)
        value = jnp.mean(losses.astype(jnp.float32))
        return jax.lax.cond(value < best[0], lambda: (value, variables), lambda: best)

    return jax.lax.cond((steps % recipe.validate_every == 0) | (steps == total), look, lambda: best)


def _initial_state(key: Key, model: Model, optimizer: optax.GradientTransformation, dataset: Dataset) -> TrainState:
    variables = model.init(key, jax.tree.map(lambda leaf: leaf[:1], dataset.inputs))
    state = TrainState(
        variables, optimizer.init(variables.params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    )
    return jax.tree.map(_strong, state)


def _strong(leaf: Array) -> Array:
    """Without weak types, which would change between the first round and the second."""
    return averaging.as_dtype(leaf, jnp.asarray(leaf).dtype)


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
    return batch_size if value is None else checks.positive_int("unlabelled_batch_size", value)


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
    recipe: _Recipe, model: Model, penalty: Penalty | None, with_total: bool
) -> Callable[[Key, TrainState, Dataset, Array, _Views | None, Array, Array | int], TrainState]:
    import optax

    objective = _objective(recipe, model, penalty)

    def update(
        key: Key,
        state: TrainState,
        batch: Dataset,
        weights: Array,
        views: _Views | None,
        num_labelled: Array,
        total: Array | int,
    ) -> TrainState:
        key_augment, key_model = jax.random.split(key)
        if recipe.augment is not None:
            batch = recipe.augment(key_augment, batch)
        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        params = state.variables.params
        (value, collections), gradients = value_and_grad(params, state, batch, weights, key_model, views, num_labelled)
        told = {"total_steps": total} if with_total else {}
        with jax.numpy_dtype_promotion("standard"):  # optax mixes Python floats and integer counts
            updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, params, **told)
            params = optax.apply_updates(params, updates)
        steps = state.steps + 1
        share = jnp.maximum(1.0 / steps.astype(jnp.float32), 0.02)
        new = TrainState(Variables(params, collections), opt_state, steps, state.loss + share * (value - state.loss))
        return jax.tree.map(lambda leaf, old: averaging.as_dtype(leaf, old.dtype), new, state)

    return update


def _objective(recipe: _Recipe, model: Model, penalty: Penalty | None) -> Callable[..., tuple[Array, PyTree]]:
    batch_size, consistency = recipe.batch_size, recipe.consistency

    def objective(
        params: PyTree,
        state: TrainState,
        batch: Dataset,
        weights: Array,
        key: Key,
        views: _Views | None,
        num_labelled: Array,
    ) -> tuple[Array, PyTree]:
        variables = Variables(params, state.variables.collections)
        inputs = batch.inputs if views is None else _joined(batch.inputs, views.first)
        all_outputs, collections = model.train(variables, inputs, key)
        outputs = all_outputs if views is None else jax.tree.map(lambda leaf: leaf[:batch_size], all_outputs)
        losses = recipe.loss(outputs, batch.targets)
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
        if recipe.regularizer is not None:
            mean += jnp.asarray(recipe.regularizer(params)).astype(mean.dtype)
        if penalty is not None:
            mean += jnp.asarray(penalty(params, num_labelled)).astype(mean.dtype)
        return mean, collections

    return objective
