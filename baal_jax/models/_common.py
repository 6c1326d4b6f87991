"""Four pure functions of a network from one: what all module systems share."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval

from baal_jax._util import random
from baal_jax.models._flags import Mode
from baal_jax.models._pretrained import merged
from baal_jax.typing import Array, Key, Model, PyTree, Variables

Run = Callable[[Variables, PyTree, Key, Mode], tuple[PyTree, PyTree]]  # outputs, collections
OWN_LAYERS = "name your own random layers: from_linen(…, stochastic=(MyLayer,)), from_nnx(…, stochastic=(MyLayer,))"


def model_of(init: Callable[[Key, PyTree], Variables], run: Run, outputs: Callable | None, cure: str) -> Model:
    """The four functions from one."""

    def picked(variables: Variables, inputs: PyTree, key: Key, mode: Mode) -> tuple[PyTree, PyTree]:
        returned, collections = run(merged(variables), inputs, key, mode)
        return returned if outputs is None else outputs(returned), collections

    call = _with_axes(picked)

    def train(variables: Variables, inputs: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        return call(variables, inputs, random.vectorised(key), Mode.TRAIN)

    predict = _one_function(_plain(lambda *given: call(*given, Mode.PREDICT)[0], None))
    evaluate = _one_function(_plain(lambda *given: call(*given, Mode.EVALUATE)[0], cure))
    deterministic = lambda variables, inputs: evaluate(variables, inputs, jax.random.key(0))  # noqa: E731
    first = _with_axes(init)
    started = lambda key, inputs: first(random.vectorised(key), inputs)  # noqa: E731
    return Model(started, predict, train, deterministic)


def require_stochastic(model: Model, variables: Variables, inputs: PyTree, why: str | None = None) -> None:
    """Refuses a network whose output does not depend on the key, from its traced program, without running it.

    Args:
        model: the network.
        variables: its arrays (values are not read).
        inputs: ``[B, …]`` (values are not read).
        why: what is wrong then, and the cure; by default that of MC-dropout.

    Raises:
        ValueError: all draws would be the same function.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (variables, inputs))
    if not _reads_last_argument(jax.make_jaxpr(model.apply)(*shapes, jax.random.key(0))):
        otherwise = (
            ", so every Monte-Carlo draw would be the same function and MC-dropout would be deterministic: all "
            f"disagreement scores would be 0. Add dropout with a rate above 0, or {OWN_LAYERS}"
        )
        raise ValueError(f"the model's output does not depend on the key{otherwise if why is None else why}")


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
        key = random.vectorised(key)

        def one(example: PyTree) -> PyTree:
            outputs = apply(variables, jax.tree.map(lambda leaf: leaf[None], example), key)
            return jax.tree.map(lambda leaf: leaf[0], outputs)

        return jax.vmap(one)(inputs)

    return apply_rows


def _plain(apply: Callable[..., PyTree], cure: str | None) -> Callable[..., PyTree]:
    """The same without sharding constraints, and with a ``cure`` for a network that must leave its key alone."""

    def call(*arguments: PyTree) -> PyTree:
        program, shapes = jax.make_jaxpr(apply, return_shape=True)(*arguments)
        if cure is not None and _reads_last_argument(program):
            raise ValueError(
                "the model's output depends on the key with every known random layer off, so it has no evaluation "
                f"mode: {cure}, or give the function yourself: model._replace(deterministic=…)"
            )
        # A network that says how its batch is split over devices says it of one example here, of which there is
        # nothing to split: all devices would compute every row.
        program = ClosedJaxpr(_unconstrained(program.jaxpr), program.consts)
        return jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(program)(*jax.tree.leaves(arguments)))

    return call


def _unconstrained(jaxpr: Jaxpr) -> Jaxpr:
    renamed: dict = {}
    equations = []

    def walk(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return ClosedJaxpr(_unconstrained(value.jaxpr), value.consts)
        if isinstance(value, Jaxpr):
            return _unconstrained(value)
        return tuple(map(walk, value)) if type(value) is tuple else value

    def new(atom: Any) -> Any:
        return atom if isinstance(atom, Literal) else renamed.get(atom, atom)

    for equation in jaxpr.eqns:
        if equation.primitive.name == "sharding_constraint":
            renamed[equation.outvars[0]] = new(equation.invars[0])
            continue
        params = {name: walk(value) for name, value in equation.params.items()}
        equations.append(equation.replace(invars=[new(atom) for atom in equation.invars], params=params))
    return jaxpr.replace(eqns=equations, outvars=[new(atom) for atom in jaxpr.outvars])


def _reads_last_argument(program: Any) -> bool:
    used = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))[1]
    return bool(used[-1])
