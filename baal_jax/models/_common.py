"""Four pure functions of a network from one, which is what all module systems share; and networks of any library."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun, primitives
from jax.interpreters import partial_eval

from baal_jax._util import programs, random, windows
from baal_jax.models._flags import Mode
from baal_jax.models._pretrained import merged, starting_from
from baal_jax.typing import Array, Key, Model, PyTree, Variables

Run = Callable[[Variables, PyTree, Key, Mode], tuple[PyTree, PyTree]]  # outputs, collections
OWN_LAYERS = "name your own random layers: from_linen(…, stochastic=(MyLayer,)), from_nnx(…, stochastic=(MyLayer,))"


def model_of(init: Callable[[Key, PyTree], Variables], run: Run, outputs: Callable | None, cure: str) -> Model:
    """The four functions from one."""

    def picked(variables: Variables, inputs: PyTree, key: Key, mode: Mode) -> tuple[PyTree, PyTree]:
        returned, collections = run(merged(variables), inputs, key, mode)
        return returned if outputs is None else outputs(returned), collections

    call = _with_axes(picked)
    learn = _fitted(lambda *given: call(*given, Mode.TRAIN), free=False)
    train = lambda variables, inputs, key: learn(variables, inputs, random.vectorised(key))  # noqa: E731
    predict = _one_function(_fitted(lambda *given: call(*given, Mode.PREDICT)[0]))
    evaluate = _one_function(_fitted(lambda *given: call(*given, Mode.EVALUATE)[0], cure=cure))
    deterministic = lambda variables, inputs: evaluate(variables, inputs, jax.random.key(0))  # noqa: E731
    started = _with_axes(lambda key, inputs: init(random.vectorised(key), inputs))
    return Model(started, predict, train, deterministic)


def from_functions(
    init: Callable[[Key, PyTree], PyTree] | None,
    apply: Callable[[PyTree, PyTree, Key], PyTree],
    deterministic: Callable[[PyTree, PyTree], PyTree] | None = None,
    *,
    variables: PyTree = None,
    outputs: Callable[[PyTree], PyTree] | None = None,
) -> Model:
    """A network from the functions of any library (Haiku, Equinox, your own).

    Args:
        init: ``(key, inputs [B, …]) -> params``; None where ``variables`` has them all.
        apply: ``(params, inputs [B, …], key) -> outputs [B, …, C]``, with dropout on. Training calls it with a batch;
            prediction calls it with one example at a time under ``vmap``, so that one key is one function.
        deterministic: ``(params, inputs [B, …]) -> outputs [B, …, C]``, with dropout off, for what reads the network
            in evaluation mode (``features``). Not needed for an ``apply`` that does not use its key.
        variables: pretrained params, from which every fit starts: all of them, or a part of their tree.
        outputs: what to take of what ``apply`` and ``deterministic`` return, such as ``lambda out: out["logits"]``.

    Returns:
        A :class:`~baal_jax.typing.Model`, which raises ``ValueError`` where ``variables`` do not fit the network, and
        in ``deterministic`` where ``apply`` is random and nothing else was given.

    Example:
        >>> def init(key, inputs):
        ...     return jax.random.normal(key, (inputs.shape[-1], 3))
        >>> def apply(params, inputs, key):
        ...     return (inputs * jax.random.bernoulli(key, 0.5, inputs.shape)) @ params
        >>> model = baal.from_functions(init, apply)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> model.apply(variables, jnp.ones((2, 4)), jax.random.key(1)).shape
        (2, 3)
    """

    def run(variables: Variables, inputs: PyTree, key: Key, mode: Mode) -> tuple[PyTree, PyTree]:
        if mode is Mode.EVALUATE and deterministic is not None:
            return deterministic(variables.params, inputs), variables.collections
        return apply(variables.params, inputs, key), variables.collections

    def fresh(key: Key, inputs: PyTree) -> Variables:
        return Variables(variables if init is None else init(key, inputs), {})

    cure = "pass from_functions(…, deterministic=(params, inputs) -> outputs), the network with dropout off"
    start = fresh if variables is None else starting_from(fresh, Variables(variables, {}))
    return model_of(start, run, outputs, cure)


def require_stochastic(model: Model, variables: Variables, inputs: PyTree, why: str | None = None) -> None:
    """Refuses with a ``ValueError`` a network whose output does not depend on the key, from its traced program alone.

    Args:
        model: the network.
        variables: its arrays (values are not read).
        inputs: ``[B, …]`` (values are not read).
        why: what is wrong then, and the cure; by default that of MC-dropout.

    Example:
        >>> model, inputs = baal.from_linen(nn.Dropout(0.5, deterministic=False)), jnp.ones((1, 3))
        >>> baal.models.require_stochastic(model, model.init(jax.random.key(0), inputs), inputs)
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (variables, inputs))
    if not _reads_last_argument(jax.make_jaxpr(model.apply)(*shapes, jax.random.key(0))):
        same = "every Monte-Carlo draw would be the same function and MC-dropout would be deterministic"
        cure = f"all disagreement scores would be 0. Add dropout with a rate above 0, or {OWN_LAYERS}"
        why = f", so {same}: {cure}" if why is None else why
        raise ValueError(f"the model's output does not depend on the key{why}")


def sown_losses(collections: PyTree) -> tuple[PyTree, Array | None]:
    """What training returns beside outputs, parted: the collections to go on with, and the sum of the losses sown."""
    if not isinstance(collections, dict) or "losses" not in collections:
        return collections, None
    rest = {name: value for name, value in collections.items() if name != "losses"}
    return rest, jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, collections["losses"]))


def require_learning(seen: Sequence[bool | None]) -> None:
    """Refuses a network all of whose batch statistics stay as they are in training."""
    if False in seen and True not in seen:
        raise ValueError(
            "the network holds batch normalisation that learns nothing in training: no flag that is known by its name "
            "reaches it. Pass from_…(…, train_kwargs={'your_flag': True}), or train_kwargs={} to leave it so"
        )


def with_losses(collections: Mapping, losses: PyTree) -> dict:
    """The collections after training, with what :func:`sown_losses` finds there."""
    return {**collections, "losses": losses} if jax.tree.leaves(losses) else dict(collections)


def _with_axes(call: Callable) -> Callable:
    """Binds the axes that a network names, as in data-parallel training, to an axis of size one."""
    names: list[str] = []

    def bound(*given: Any) -> PyTree:
        while True:
            body = lambda _: call(*given)  # noqa: E731
            for name in names:
                mapped = jax.vmap(body, axis_name=name)
                body = lambda one, mapped=mapped: jax.tree.map(lambda leaf: leaf[0], mapped(one[None]))  # noqa: E731
            try:
                return body(jnp.zeros(()))
            except NameError as error:
                name = re.search(r"unbound axis name:? '?(\w+)", str(error))
                if name is None or name[1] in names:
                    raise
                names.append(name[1])

    return bound


def _one_function(apply: Callable[[Variables, PyTree, Key], PyTree]) -> Callable[[Variables, PyTree, Key], PyTree]:
    """Maps a network over single examples with one key: every row meets the same sampled function.

    The masks and whatever does not depend on the key stay unbatched, so the compiler sees plain batched layers.
    """

    def apply_rows(variables: Variables, inputs: PyTree, key: Key) -> PyTree:
        key, rows = random.vectorised(key), jax.tree.map(lambda leaf: leaf[:, None], inputs)
        outputs = jax.vmap(lambda row: apply(variables, row, key))(rows)
        return jax.tree.map(lambda leaf: leaf[:, 0], outputs)

    return apply_rows


def _fitted(apply: Callable[..., PyTree], *, free: bool = True, cure: str | None = None) -> Callable[..., PyTree]:
    """The same, fit for this backend; with a ``cure`` for a network that must leave its last argument, the key, alone.

    ``free`` takes sharding constraints out. A network that says how its batch is split over devices says it of one
    example in prediction, of which there is nothing to split: all devices would compute every row.
    """

    def call(*arguments: PyTree) -> PyTree:
        rules = windows.rules() | ({primitives.sharding_constraint_p: lambda _, operand: [operand]} if free else {})
        if not rules:
            return apply(*arguments)
        program, shapes = jax.make_jaxpr(apply, return_shape=True)(*arguments)
        if cure is not None and _reads_last_argument(program):
            raise ValueError(
                "the model's output depends on the key with every known random layer off, so it has no evaluation "
                f"mode: {cure}, or give the function yourself: model._replace(deterministic=…)"
            )
        function = jaxpr_as_fun(programs.rewritten(program, rules))
        return jax.tree.unflatten(jax.tree.structure(shapes), function(*jax.tree.leaves(arguments)))

    return call


def _reads_last_argument(program: Any) -> bool:
    used = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))[1]
    return bool(used[-1])
