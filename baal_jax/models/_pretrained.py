"""Weights that are given: arguments of a program, not constants in it; and the part of them that is not trained."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks
from baal_jax.typing import Key, Model, PyTree, Variables

_LEAST_BYTES = 2**15  # smaller ones may be constants
_is_none = lambda leaf: leaf is None  # noqa: E731


def starting_from(init: Callable[[Key, PyTree], Variables], given: Variables) -> Callable[[Key, PyTree], Variables]:
    """``init`` with the leaves of ``given``, and new ones where it has none."""
    weights = {path: jnp.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(given)}
    concrete = checks.is_concrete(list(weights.values()))

    def started(key: Key, inputs: PyTree) -> Variables:
        places, structure = jax.tree_util.tree_flatten_with_path(jax.eval_shape(init, key, inputs))
        there = {path: leaf.shape for path, leaf in places}
        for path, leaf in weights.items():
            if there.get(path) != leaf.shape:
                name, own = jax.tree_util.keystr(path, simple=True, separator="/"), there.get(path, "nothing")
                cure = "leave it out to start it afresh, or build the network to fit"
                raise ValueError(f"variables has {name} of shape {leaf.shape}, where the network has {own}: {cure}")
        new = {} if len(weights) == len(there) else dict(jax.tree_util.tree_leaves_with_path(init(key, inputs)))
        read = dict(zip(weights, _arguments(list(weights.values())) if concrete else weights.values(), strict=True))
        return structure.unflatten([read[path] if path in read else new[path] for path, _ in places])

    return started


def frozen(model: Model, trainable: Callable[[tuple], bool]) -> Model:
    """The same network where only what ``trainable`` selects by its path is in ``params``."""

    def init(key: Key, inputs: PyTree) -> Variables:
        variables = model.init(key, inputs)
        if variables.frozen is not None:  # parted before
            return variables
        paths, structure = jax.tree_util.tree_flatten_with_path(variables.params)
        chosen = [bool(trainable(names(path))) for path, _ in paths]
        if not any(chosen):
            shown = ", ".join(str(names(path)) for path, _ in paths[:6])
            raise ValueError(f"trainable selects nothing to train: let it be true for some of the paths {shown}, …")
        pairs = [(leaf, None) if use else (None, leaf) for (_, leaf), use in zip(paths, chosen, strict=True)]
        params, rest = map(structure.unflatten, zip(*pairs, strict=True))
        return Variables(params, variables.collections, rest)

    return model._replace(init=init)


def merged(variables: Variables) -> Variables:
    """Variables with what is not trained in its place among the parameters."""
    if not isinstance(variables, Variables):
        cure = "pass baal.Variables(params, collections), collections such as {'batch_stats': …}, or of nnx its States"
        raise TypeError(f"variables is a {type(variables).__name__}: {cure}")
    if variables.frozen is None:
        return variables
    pick = lambda trained, rest: rest if trained is None else trained  # noqa: E731
    return variables._replace(params=jax.tree.map(pick, variables.params, variables.frozen, is_leaf=_is_none))


def rests(variables: Variables, path: tuple) -> bool:
    """Whether no parameter of the layer at ``path`` is trained; of one without parameters, of what it is part of."""
    rest = variables.frozen
    for name in path:
        if not (isinstance(rest, Mapping) and name in rest):
            break
        rest = rest[name]
    return rest is not None and None not in jax.tree.leaves(rest, is_leaf=_is_none)


def require_all(needed: PyTree, given: PyTree, cure: str) -> None:
    """Refuses variables that lack some of what a network keeps, or have more."""
    with_paths = [jax.tree_util.tree_leaves_with_path(tree) for tree in (needed, given)]
    paths = [{jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in tree} for tree in with_paths]
    for verb, these in (("lacks", paths[0] - paths[1]), ("has", paths[1] - paths[0])):
        if these:
            other = ", which the network has" if verb == "lacks" else ", which the network has not"
            raise ValueError(f"variables {verb} {', '.join(sorted(these)[:3])}{' …' * (len(these) > 3)}{other}: {cure}")


def names(path: tuple) -> tuple:
    """A path as names and numbers."""
    return tuple(getattr(step, "key", getattr(step, "name", getattr(step, "idx", step))) for step in path)


def _arguments(leaves: list) -> list:
    """The same arrays, where a program is traced as what it is handed when it runs.

    Those it closes over would be constants in its text, but under ``JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS=1``.
    """
    large = [leaf for leaf in leaves if leaf.nbytes > _LEAST_BYTES]
    by_jax = jax.config.jax_use_simplified_jaxpr_constants  # pyright: ignore[reportAttributeAccessIssue]
    if not large or by_jax or checks.is_concrete(jnp.zeros(())):  # which is traced where anything is
        return leaves
    handed = iter(jax.pure_callback(lambda: list(map(np.asarray, large)), jax.eval_shape(list, large)))
    return [next(handed) if leaf.nbytes > _LEAST_BYTES else leaf for leaf in leaves]
