"""Fitting a network to the labelled part of a data set, as one compiled function of fixed shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, meshes, numerics, random, sources
from baal_jax.models import frozen, require_stochastic, sown_losses
from baal_jax.training import averaging, batches, optimization, tasks
from baal_jax.training.semi_supervised import Augmentation, Consistency
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
    augment: Augmentation | None = None,
    regularizer: Callable[[PyTree], Array] | None = None,
    average_from: float | None = None,
    warm_start: bool = False,
    validation: Dataset | None = None,
    validate_every: int = 50,
    unlabelled: Consistency | None = None,
    unlabelled_batch_size: int | None = None,
    task: tasks.Task | None = None,
    trainable: Callable[[tuple], bool] | None = None,
    class_weights: Literal["balanced"] | None = None,
) -> Trainer:
    r"""A training procedure: from a model to its pure, compiled ``fit``.

    Batches come from endless shuffled passes over the labelled examples, so each is seen equally often, whatever the
    batch size; one of unknown target counts as not labelled. A growing labelled set never compiles again. Parameters
    and batch statistics start afresh in every fit, unless ``warm_start``, optimizer and schedules always do, and the
    last weights are returned, unless ``average_from`` or ``validation`` choose others. Without labels the loss is zero.

    With ``unlabelled``, every step also reads ``U`` inputs, whatever their targets. The first view of them shares a
    pass through the network with the labelled batch, from which batch statistics come; the second has its own.

    Args:
        optimizer: any optax transformation; weight decay and schedules belong here. Those that ask for the loss are
            given it, what is left in ``optax.MultiSteps`` is an update, and schedule-free ones return their evaluation
            weights. Or a function ``num_steps int32[] -> transformation``, for a schedule as long as the fit.
        loss: ``(outputs [B, …, C], targets [B, …]) -> [B]``, one number an example.
        num_steps: number of updates, or
        num_epochs: passes over the labelled examples (exactly one of the two); the last batch counts only its share.
        batch_size: ``B``.
        augment: ``(key, batch) -> batch``, on a :class:`~baal_jax.Dataset` of ``B`` examples, compiled in.
        regularizer: ``params -> float``, added to the mean loss.
        average_from: stochastic weight averaging from this share of the steps on: 0.75 returns the mean of the weights
            over the last quarter, with batch statistics anew from 100 batches. Keep the learning rate high meanwhile.
        warm_start: continue from the parameters and batch statistics of the round before.
        validation: labelled examples beside the pool, compiled in, that decide which weights are returned: those with
            the smallest mean loss, in evaluation mode, of every ``validate_every``-th step and the last.
        validate_every: steps between two looks at ``validation``.
        unlabelled: from :mod:`baal_jax.training.semi_supervised`, a part of the loss that reads inputs without targets.
        unlabelled_batch_size: ``U``, by default ``batch_size``.
        task: what a loss of your own learns, one of :mod:`baal_jax.training.tasks`; ours are known.
        trainable: ``path -> bool``, which parameters are trained, by the names and numbers on the way to them:
            ``lambda path: path[0] == "head"``. The rest, ``frozen`` in :class:`~baal_jax.Variables`, keeps the values
            of ``model.init``, without gradient, optimizer state, batch normalisation at work or spread in posteriors.
        class_weights: ``"balanced"`` multiplies the loss of an example of class ``c`` by ``n / (K n_c)``, with ``n_c``
            of the ``n`` labels of this fit and ``K`` classes among them, so that all weigh as much; for ``int[N]``.

    Returns:
        ``model -> fit`` (see :class:`~baal_jax.typing.Trainer`), with ``fit(key, dataset, labelled bool[N],
        previous=None) -> TrainState``. ``fit`` is jitted; with ``num_steps`` it can be differentiated in reverse, with
        Adam for ``eps_root > 0``, since its square root has no gradient at 0.

    Raises:
        TypeError: ``loss`` or ``optimizer`` is none, or what is trained is no :class:`~baal_jax.Model`.
        ValueError: ``validation`` cannot judge, both or neither of ``num_steps`` and ``num_epochs``, a value that is
            not positive, an ``average_from`` outside of [0, 1) or beside ``validation``, an ``unlabelled`` of another
            type; when it is traced, a loss that does not give one number for each example, whatever the others.

    References:
        Izmailov et al., `Averaging weights leads to wider optima and better generalization
        <https://arxiv.org/abs/1803.05407>`_, 2018.

    Example:
        >>> train = baal.Dataset(jnp.eye(4), jnp.array([0, 1, 0, 1]))
        >>> fit = baal.trainer(optax.adam(0.1), baal.losses.cross_entropy, num_steps=50)(baal.from_linen(nn.Dense(2)))
        >>> state = fit(jax.random.key(0), train, jnp.array([True, True, False, False]))
        >>> int(state.steps), bool(state.loss < 0.1)
        (50, True)
    """
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(f"num_steps={num_steps} and num_epochs={num_epochs}: give exactly one of the two")
    num_steps, num_epochs = checks.optional_int("num_steps", num_steps), checks.optional_int("num_epochs", num_epochs)
    batch_size = checks.positive_int("batch_size", batch_size)
    if average_from is not None and not 0.0 <= average_from < 1.0:
        raise ValueError(f"average_from={average_from} must be at least 0 and less than 1: it is a share of the steps")
    checks.function("loss", loss, "baal_jax.losses.cross_entropy")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        checks.function("optimizer", optimizer, "optax.adam(1e-3)")
    task = tasks.of_loss(loss) if task is None else task
    if validation is not None:
        tasks.admit("validation", validation, task)
        if sources.is_source(validation.inputs) and not isinstance(validation.inputs, np.ndarray):
            raise ValueError("validation.inputs is a source on the host, but part of the program: load it whole")
    if validation is not None and average_from is not None:
        raise ValueError(f"average_from={average_from} beside validation: give one, both choose the weights")
    validate_every = checks.positive_int("validate_every", validate_every)
    if not isinstance(unlabelled, Consistency | None):
        raise ValueError(f"unlabelled={unlabelled!r} must be made by semi_supervised.pi_model(…) or fix_match(…)")
    if unlabelled is None and unlabelled_batch_size is not None:
        raise ValueError(f"unlabelled_batch_size={unlabelled_batch_size} without unlabelled: give both or neither")
    num_unlabelled = checks.optional_int("unlabelled_batch_size", unlabelled_batch_size) or batch_size
    steps = num_steps, num_epochs, batch_size, augment, regularizer
    weights = average_from, warm_start, validation, validate_every
    if trainable is not None:
        checks.function("trainable", trainable, 'lambda path: path[0] == "head"')
    part = lambda model: model if trainable is None else frozen(model, trainable)  # noqa: E731
    if class_weights not in (None, "balanced"):
        raise ValueError(f"class_weights={class_weights!r} must be 'balanced', or None for weights of 1")
    return _Recipe(optimizer, loss, *steps, *weights, unlabelled, num_unlabelled, task, part, class_weights is not None)


class _Recipe(NamedTuple):
    """What :func:`trainer` returns: what it was asked for."""

    optimizer: optax.GradientTransformation
    loss: Callable[[PyTree, Array], Array]
    num_steps: int | None
    num_epochs: int | None
    batch_size: int
    augment: Augmentation | None
    regularizer: Callable[[PyTree], Array] | None
    average_from: float | None
    warm_start: bool
    validation: Dataset | None
    validate_every: int
    unlabelled: Consistency | None
    num_unlabelled: int
    task: tasks.Task | None
    part: Callable[[Model], Model]  # the model whose params are what is trained
    balanced: bool  # whether classes weigh as much

    def __call__(self, model: Model, *, penalty: Penalty | None = None, transform: Any = None) -> Fit:
        if not isinstance(model, Model):
            raise TypeError(f"model is a {type(model).__name__}: wrap it by from_linen, from_nnx or from_functions")
        recipe, model = self, self.part(model)
        if recipe.validation is not None:
            recipe = recipe._replace(validation=_judges(recipe.validation, model, self.task))
        return jax.jit(_make_fit(recipe, model, penalty, transform))


class _Plan(NamedTuple):
    """Which examples a step reads, and the keys of what it does with them."""

    number: Array
    key: Key
    ids: Array  # int32[B]
    weights: Array  # float32[B]
    views: tuple[Key, Array] | None = None  # a key, and int32[U] ids of unlabelled inputs


class _Batch(NamedTuple):
    """What a step trains on."""

    inputs: PyTree  # [B + U, …]: the labelled examples, then the first view of the unlabelled inputs
    targets: Any  # [B, …]
    weights: Array  # float32[B]
    key: Key
    second: PyTree = None  # the second view [U, …]
    key_second: Any = None


_Carry = tuple[TrainState, PyTree]  # the network, and what is kept of it on the way


def _judges(validation: Dataset, model: Model, task: tasks.Task | None) -> Dataset:
    """The examples of a validation set that can judge: those whose targets are known."""

    def outputs() -> tuple[int, ...] | None:
        one = lambda inputs: model.deterministic(model.init(jax.random.key(0), inputs), inputs)  # noqa: E731
        return getattr(jax.eval_shape(one, validation.inputs), "shape", None)

    task = tasks.admit("validation", validation, task, outputs)
    if validation.targets is None:
        raise ValueError("validation has no targets: give labelled examples, or leave it out")
    if not checks.is_concrete(validation):
        return validation
    known = meshes.on_host(tasks.known(validation.targets, task, outputs()))
    rows = np.flatnonzero(known.reshape(len(known), -1).any(axis=1))
    if not len(rows):
        raise ValueError("validation holds no example whose target is known: give some, or leave it out")
    return validation if len(rows) == len(known) else jax.tree.map(lambda leaf: np.asarray(leaf)[rows], validation)


def _make_fit(recipe: _Recipe, model: Model, penalty: Penalty | None, transform: Any) -> Fit:
    whole = model

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: TrainState | None = None) -> TrainState:
        num_examples = checks.leading_axis("dataset", dataset)
        labelled = jnp.asarray(labelled)
        if labelled.shape != (num_examples,):
            raise ValueError(f"labelled has shape {labelled.shape}, but the data set {num_examples} examples")
        # The first three are the same with and without a fourth.
        key_init, key_order, key_steps, *key_views = random.split(key, 3 if recipe.unlabelled is None else 4)
        row = jax.tree.map(lambda leaf: leaf[:1], dataset.inputs)
        variables = whole.init(key_init, row)
        views = recipe.unlabelled
        if views is not None and not (recipe.augment or views.first or views.second):
            why = " and nothing is augmented, so both views of unlabelled are the same: add dropout or an augmentation"
            require_stochastic(whole, variables, row, why)
        # What is not trained stays out of the loop, in which all else is carried from step to step.
        model, rest, variables = _completed(whole, variables.frozen), variables.frozen, variables._replace(frozen=None)
        if recipe.warm_start and previous is not None:
            # All weights are zero before the first fit; steps are zero after one that moved nothing, too.
            old = previous.variables._replace(frozen=None)
            nonzero = jax.tree.map(lambda leaf: jnp.any(leaf != 0), old.params)
            begun = jax.tree.reduce(jnp.logical_or, nonzero, previous.steps > 0)
            variables = jax.tree.map(lambda old, new: jnp.where(begun, old, new), old, variables)
        labelled &= _answered(recipe, model, variables, dataset)
        stream = batches.stream_of(key_order, labelled)
        balance = _balance(recipe, model, variables, dataset, labelled)
        objective = jax.value_and_grad(partial(_objective, recipe, model, penalty, balance), has_aux=True)
        size = jnp.int32(getattr(dataset, "size", num_examples))
        plan = _planner(recipe, stream, size, key_steps, *key_views)
        total: Array | int = recipe.num_steps or 0
        if recipe.num_epochs is not None:
            total = (stream.size * recipe.num_epochs + recipe.batch_size - 1) // recipe.batch_size
        optimizer = optimization.Optimizer(recipe.optimizer, transform, total)
        first = TrainState(variables, optimizer.init(variables.params), jnp.int32(0), jnp.float32(0.0))
        # Weak types would change between the first round and the second, and compile again.
        first = averaging.cast_like(first, first)

        def step(carry: _Carry, planned: _Plan) -> _Carry:
            state, kept = carry
            batch = _read(recipe, dataset, planned)
            state = optimizer.step(partial(objective, state=state, batch=batch, size=stream.size), state)
            return state, _keep(recipe, model, kept, optimizer.evaluated(state), planned.number, total)

        state, kept = _repeat(recipe.num_steps, total, step, plan, (first, _keep_first(recipe, first.variables)))
        state = optimizer.finish(state)
        if recipe.validation is not None:
            state = state._replace(variables=kept[1])
        elif recipe.average_from is not None:

            def later(index: Array) -> tuple[Key, PyTree]:
                batch = _read(recipe, dataset, plan(total + index))
                return batch.key, batch.inputs

            average = Variables(averaging.cast_like(kept, state.variables.params), state.variables.collections)
            state = state._replace(variables=averaging.with_new_statistics(model, average, later))
        steps = jnp.where(_have_moved(first, state), state.steps, 0)
        return state._replace(variables=state.variables._replace(frozen=rest), steps=steps)

    return fit


def _completed(model: Model, rest: PyTree) -> Model:
    """The network of what is trained, with the rest of its parameters."""
    with_rest = lambda call: lambda variables, *given: call(variables._replace(frozen=rest), *given)  # noqa: E731
    return model if rest is None else Model(model.init, *map(with_rest, model[1:]))


def _answered(recipe: _Recipe, model: Model, variables: Variables, dataset: Dataset) -> Array:
    """``bool[N]``, examples with a target that is known, if only at one position."""
    targets = dataset.targets
    if not hasattr(targets, "dtype"):
        return jnp.ones(jax.tree.leaves(dataset.inputs)[0].shape[0], bool)
    outputs = None
    if recipe.task is None and not jnp.issubdtype(targets.dtype, jnp.floating):
        outputs, _ = jax.eval_shape(model.train, variables, dataset.inputs, jax.random.key(0))
        outputs = getattr(outputs, "shape", None)
    known = tasks.known(targets, recipe.task, outputs)
    return jnp.any(known, axis=tuple(range(1, known.ndim)))


def _balance(recipe: _Recipe, model: Model, variables: Variables, dataset: Dataset, labelled: Array) -> Array | None:
    """Weights of the classes ``[C]`` that make all of them count as much."""
    if not recipe.balanced:
        return None
    targets = dataset.targets
    outputs, _ = jax.eval_shape(model.train, variables, dataset.inputs, jax.random.key(0))
    size, is_other = getattr(outputs, "shape", (0,))[-1], recipe.task not in (None, tasks.classification)
    dtype = getattr(targets, "dtype", np.dtype(object))
    if is_other or size < 2 or np.ndim(targets) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError("class_weights='balanced' needs outputs and targets of one class an example, int[N]")
    counts = jax.ops.segment_sum(labelled.astype(jnp.float32), targets, size)  # negative ones are dropped
    present = jnp.maximum(jnp.sum(counts > 0, dtype=jnp.float32), 1.0)
    return jnp.sum(counts) / (present * jnp.maximum(counts, 1.0))


def _have_moved(before: TrainState, after: TrainState) -> Array:
    """Whether any weight is another, by sums of squares, so that nothing has to be kept."""
    square = lambda leaf: jnp.sum(jnp.abs(leaf.astype(jnp.float32)) ** 2)  # noqa: E731
    old, new = (jax.tree.map(square, state.variables.params) for state in (before, after))
    return jax.tree.reduce(jnp.logical_or, jax.tree.map(jnp.not_equal, old, new), jnp.bool_(not jax.tree.leaves(old)))


def _planner(
    recipe: _Recipe, stream: batches.Stream, size: Array, key_steps: Key, key_views: Any = None
) -> Callable[..., _Plan]:
    unlabelled: tuple[Key, batches.Stream] | None = None
    if key_views is not None:
        key_inputs, key_augment = jax.random.split(key_views)
        unlabelled = key_augment, batches.Stream(key_inputs, lambda places: places, size)

    def plan(number: Array) -> _Plan:
        labelled = stream.batch(number, recipe.batch_size, recipe.num_epochs)
        planned = _Plan(number, batches.step_key(key_steps, number), *labelled)
        if unlabelled is None:
            return planned
        (key, inputs), size = unlabelled, recipe.num_unlabelled
        return planned._replace(views=(batches.step_key(key, number), inputs.batch(number, size, None)[0]))

    return plan


def _repeat(num_steps: int | None, total: Array | int, step: Callable, plan: Callable, carry: _Carry) -> _Carry:
    if num_steps is None:
        end = numerics.largest(jnp.asarray(total))
        return jax.lax.fori_loop(0, end, lambda index, carry: step(carry, plan(index.astype(jnp.int32))), carry)

    # A plan is some forty operations on a handful of numbers, which in every step would take longer than a small
    # network. So they are made for many steps at once, but not for all, which would take memory.
    size = num_steps if num_steps <= 64 else max((n for n in range(32, 65) if num_steps % n == 0), default=64)

    def some(index: Array, carry: _Carry) -> _Carry:
        numbers = index.astype(jnp.int32) * size + jnp.arange(size, dtype=jnp.int32)

        def one(carry: _Carry, planned: tuple[Array, _Plan]) -> tuple[_Carry, None]:
            if num_steps % size == 0:
                return step(carry, planned[1]), None
            # Of the last ones some are too many. A loop of their own would compile the step a second time.
            return jax.lax.cond(planned[0] < num_steps, step, lambda carry, _: carry, carry, planned[1]), None

        return jax.lax.scan(one, carry, (numbers, jax.vmap(plan)(numbers)))[0]

    return jax.lax.fori_loop(0, -(-num_steps // size), some, carry) if num_steps > size else some(jnp.int32(0), carry)


def _read(recipe: _Recipe, dataset: Dataset, planned: _Plan) -> _Batch:
    key_augment, key_model = random.split(planned.key, 2)
    augment = recipe.augment or (lambda _, batch: batch)
    batch = augment(key_augment, meshes.spread(jax.tree.map(lambda leaf: leaf[planned.ids], Dataset(*dataset))))
    read = _Batch(batch.inputs, batch.targets, planned.weights, key_model)
    if recipe.unlabelled is None or planned.views is None:
        return read
    key_views, ids = planned.views
    key_first, key_second, key_pass = jax.random.split(key_views, 3)
    rows = Dataset(jax.tree.map(lambda leaf: leaf[ids], dataset.inputs))
    first = (recipe.unlabelled.first or augment)(key_first, rows).inputs
    second = (recipe.unlabelled.second or augment)(key_second, rows).inputs
    return read._replace(inputs=_joined(batch.inputs, first), second=second, key_second=key_pass)


def _joined(labelled: PyTree, unlabelled: PyTree) -> PyTree:
    """One batch, the labelled examples first."""
    shapes = [jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), tree) for tree in (labelled, unlabelled)]
    if shapes[0] != shapes[1]:
        given = f"(shape, dtype) {shapes[1]} of unlabelled inputs, but {shapes[0]} of labelled ones"
        raise ValueError(f"augmentation makes {given}, which share a pass: let both return the same")
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), labelled, unlabelled)


def _objective(
    recipe: _Recipe,
    model: Model,
    penalty: Any,
    balance: Array | None,
    params: PyTree,
    *,
    state: TrainState,
    batch: _Batch,
    size: Array,
) -> tuple[Array, PyTree]:
    """What a step makes smaller, and the collections after it."""
    variables = Variables(params, state.variables.collections)
    outputs, collections = model.train(variables, batch.inputs, batch.key)
    collections, sown = sown_losses(collections)
    known, targets = outputs, batch.targets
    if recipe.unlabelled is not None:
        known = jax.tree.map(lambda leaf: leaf[: recipe.batch_size], outputs)
    if hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.floating):
        # A row without weight may be of an unknown target.
        targets = jnp.where(batch.weights.reshape(-1, *[1] * (targets.ndim - 1)) > 0, targets, 0.0)
    if tasks.of_loss(recipe.loss) is not None and not hasattr(known, "shape"):
        cure = "say what the loss is to be given by from_…(…, outputs=lambda out: …)"
        raise ValueError(f"the network returns a {type(known).__name__}, not an array: {cure}")
    losses = _one_each("loss", recipe.loss(known, targets), recipe.batch_size)
    if tasks.of_loss(recipe.loss) is None:
        _require_own_rows(recipe.loss, known, targets, recipe.batch_size)
    losses = jnp.mean(losses, axis=tuple(range(1, losses.ndim)))
    losses = losses if balance is None else losses * balance[targets]
    losses = jnp.where(batch.weights > 0, losses, 0.0)
    mean = jnp.sum(losses * batch.weights) / jnp.maximum(jnp.sum(batch.weights), 1.0)
    if recipe.unlabelled is not None:
        first = jax.tree.map(lambda leaf: leaf[recipe.batch_size :], outputs)
        second, _ = model.train(variables, batch.second, batch.key_second)
        differences = recipe.unlabelled.loss(first, second)
        differences = _one_each("the loss of unlabelled", differences, recipe.num_unlabelled)
        weight = jnp.asarray(recipe.unlabelled.weight(state.steps)).astype(mean.dtype)
        mean += weight * jnp.max(batch.weights) * jnp.mean(differences)  # zero where nothing is labelled
    if sown is not None:
        mean += sown.astype(mean.dtype)
    if recipe.regularizer is not None:
        mean += jnp.asarray(recipe.regularizer(params)).astype(mean.dtype)
    if penalty is not None:
        mean += jnp.asarray(penalty(params, size)).astype(mean.dtype)
    return mean, collections


def _require_own_rows(loss: Callable, outputs: PyTree, targets: PyTree, size: int) -> None:
    """Tries a loss on numbers of its own: each example has a loss, in which the others have no part."""
    leaves, random = jax.tree.leaves((outputs, targets)), np.random.default_rng(0)
    other = 1 + max(max(leaf.shape[1:], default=1) for leaf in leaves)  # a length that no other axis has

    def of_length(count: int, leaf: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *leaf.shape[1:]) if leaf.shape[:1] == (size,) else leaf.shape, leaf.dtype)

    shape = jax.eval_shape(loss, *jax.tree.map(partial(of_length, other), (outputs, targets))).shape
    cure = "make shapes equal before you subtract, outputs[..., 0] - targets"
    if shape[:1] != (other,) or shape[1:2] == (other,):
        raise ValueError(f"loss gives shape {shape} for {other} examples: give one number for each of them, and {cure}")
    if sum(leaf.size // size for leaf in leaves if leaf.shape[:1] == (size,)) > 2**20:
        return  # too many numbers to try

    def rows(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return random.uniform(0.1, 0.9, leaf.shape).astype(leaf.dtype)
        return random.integers(0, 2, leaf.shape).astype(leaf.dtype)

    first = lambda leaf, like: jnp.asarray(leaf[:1] if like.shape[:1] == (size,) else leaf)  # noqa: E731
    tried = jax.tree.map(lambda leaf: rows(of_length(3, leaf)), (outputs, targets))
    with jax.ensure_compile_time_eval(), jax.debug_nans(False):
        on_all = loss(*jax.tree.map(jnp.asarray, tried))[:1]
        on_first = loss(*jax.tree.map(first, tried, (outputs, targets)))
    if checks.is_concrete(on_all, on_first) and not np.allclose(on_all, on_first, 1e-2, 1e-4, equal_nan=True):
        raise ValueError(f"loss of an example depends on the others in its batch: {cure}, and average within examples")


def _one_each(name: str, losses: Array, size: int) -> Array:
    if losses.shape[:1] != (size,):
        need = f"but one number for each of the {size} examples is needed: leave out the mean"
        raise ValueError(f"{name} returned shape {losses.shape}, {need}")
    return losses.astype(jnp.float32)


def _keep_first(recipe: _Recipe, variables: Variables) -> PyTree:
    """What is kept on the way: the mean weights, or the smallest validation loss and its weights, or nothing."""
    if recipe.average_from is not None:
        # In half precision a mean stands still after a few hundred steps.
        return jax.tree.map(lambda leaf: numerics.as_float(leaf) if leaf.dtype.itemsize < 4 else leaf, variables.params)
    return None if recipe.validation is None else (jnp.full((), jnp.inf, jnp.float32), variables)


def _keep(recipe: _Recipe, model: Model, kept: PyTree, variables: Variables, number: Array, total: Any) -> PyTree:
    if recipe.average_from is not None:
        before = jnp.where(number < total, number - averaging.share(recipe.average_from, total), -1)
        return averaging.running_mean(kept, variables.params, before)
    if recipe.validation is None:
        return None

    def look() -> PyTree:
        one_batch = lambda rows: recipe.loss(model.deterministic(variables, rows.inputs), rows.targets)  # noqa: E731
        losses = sources.in_batches(one_batch, recipe.validation, max(recipe.batch_size, 256))
        value = jnp.mean(losses.astype(jnp.float32))
        return jax.lax.cond(value < kept[0], lambda: (value, variables), lambda: kept)

    due = ((number + 1) % recipe.validate_every == 0) & (number < total) | (number + 1 == total)
    return jax.lax.cond(due, look, lambda: kept)
