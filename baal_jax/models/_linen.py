"""Networks of flax linen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax

from baal_jax._util import random
from baal_jax.models import _common, _flags, _pretrained
from baal_jax.typing import Key, Model, PyTree, Variables


def from_linen(
    module: Any,
    *,
    stochastic: Sequence[type] = (),
    frozen: Sequence[type] = (),
    rng_collections: Sequence[str] = ("dropout",),
    train_kwargs: Mapping[str, Any] | None = None,
    predict_kwargs: Mapping[str, Any] | None = None,
    variables: Mapping[str, Any] | None = None,
    outputs: Callable[[Any], PyTree] | None = None,
) -> Model:
    """A network from a flax linen module, unedited.

    The module is called in training mode: flags by the usual names (``train``, ``is_training``, ``deterministic``,
    ``eval_mode``, …) are set in its constructor and its call, and in those of modules inside. In training and
    prediction ``nn.Dropout`` and ``nn.MultiHeadDotProductAttention`` are held on, in prediction ``nn.BatchNorm`` is
    held in evaluation mode, whatever the module asks of them; in evaluation mode all of them and the flags are. Axes
    that the module names for data parallelism may be unbound, boxes of partitioned parameters are taken off.

    Args:
        module: a linen module. Inputs that are a dict go in by keyword where the keys are parameters of its call, those
            in a tuple by position where it takes as many; a parameter ``key`` or ``rng`` is given one.
        stochastic: classes of your own to keep random in prediction (DropPath, noise layers), by the same flags.
        frozen: classes of your own to keep in evaluation mode in prediction. Layers with ``batch_stats`` are so anyhow.
        rng_collections: names of the random streams that the module reads.
        train_kwargs: keywords of ``__call__`` in training, in place of those flags.
        predict_kwargs: keywords of ``__call__`` in prediction, by default those of training. Pass
            ``{"train": False}`` for a module whose training mode changes what it returns.
        variables: pretrained, ``{"params": …, "batch_stats": …}``: all that every fit starts from, or a part of it, of
            which the rest (a new head) starts afresh. They are arguments of compiled programs, not constants in them.
        outputs: what to take of what the module returns, such as ``lambda out: out.logits``.

    Returns:
        A :class:`~baal_jax.typing.Model`; training carries every collection except ``params`` and what is sown. What is
        sown into ``"losses"`` is added to the loss.

    Raises:
        TypeError: ``module`` is no linen module.
        ValueError: when it is used, ``variables`` that do not fit the network, or batch normalisation that learns
            nothing in training because no flag reaches it.

    Example:
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train: bool):
        ...         return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))
        >>> model = baal.from_linen(Net())
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> model.apply(variables, jnp.ones((2, 4)), jax.random.key(1)).shape
        (2, 3)
    """
    import flax.linen as nn
    from flax import core

    if not issubclass(type(module), nn.Module):
        shown = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise TypeError(f"module is {shown}: pass a linen module, such as Net(), and an nnx one to from_nnx")
    asked, call = train_kwargs is None, type(module).__call__
    among = partial(intercepted, asked, stochastic=stochastic, frozen=frozen)
    keywords = _flags.keywords(module, call, train_kwargs, predict_kwargs)

    def streams(key: Key) -> dict[str, Key]:
        # A stream that has no name here is read from "params", as flax does when it initialises.
        return {name: jax.random.fold_in(key, i) for i, name in enumerate((*rng_collections, "params"))}

    def told(mode: _flags.Mode) -> Any:
        fields = _flags.of_layer(module, mode is not _flags.Mode.EVALUATE) if asked else {}
        return module.clone(**fields) if fields else module

    def run(variables: Variables, inputs: PyTree, key: Key, mode: _flags.Mode, seen: list | None = None) -> tuple:
        args, kwargs = _flags.arguments(call, inputs, keywords[mode], key, mode)
        arrays = {"params": variables.params, **variables.collections}
        mutable = core.DenyList("params")  # even in prediction: what is written there is dropped, not refused
        with among(mode, variables, [] if seen is None else seen):
            returned, after = told(mode).apply(arrays, *args, rngs=streams(key), mutable=mutable, **kwargs)
        after = nn.unbox(after)
        if "batch_stats" in after:  # flax makes new ones of what is not there: means of 0, and variances of 1
            statistics = {"batch_stats": variables.collections.get("batch_stats", {})}
            cure = "pass baal.Variables(params, {'batch_stats': …})"
            _pretrained.require_all({"batch_stats": after["batch_stats"]}, statistics, cure)
        state = {name: after.get(name, old) for name, old in variables.collections.items()}
        return returned, _common.with_losses(state, after.get("losses") if mode is _flags.Mode.TRAIN else None)

    def init(key: Key, inputs: PyTree) -> Variables:
        key_params, key_streams = random.split(key, 2)
        args, kwargs = _flags.arguments(call, inputs, keywords[_flags.Mode.TRAIN], key_streams, _flags.Mode.TRAIN)
        rngs = {**streams(key_streams), "params": key_params}
        with among(_flags.Mode.TRAIN, Variables({}, {}), []):
            arrays = nn.unbox(dict(told(_flags.Mode.TRAIN).init(rngs, *args, **kwargs)))
        collections = {name: value for name, value in arrays.items() if name not in ("params", "losses")}
        fresh, seen = Variables(arrays.get("params", {}), collections), []
        # What a call makes longer was sown: it is a record of calls, not state of the network.
        after = jax.eval_shape(lambda: run(fresh, inputs, key_streams, _flags.Mode.TRAIN, seen)[1])
        if asked:
            _common.require_learning(seen)
        return fresh._replace(collections={n: v for n, v in collections.items() if _same_shapes(v, after.get(n))})

    if variables is None:
        return _common.model_of(init, run, outputs, _common.OWN_LAYERS)
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError("variables holds no 'params': pass all collections of the network, {'params': …, …}")
    given = nn.unbox(core.unfreeze(dict(variables)))
    given = Variables(given["params"], {name: value for name, value in given.items() if name != "params"})
    return _common.model_of(_pretrained.starting_from(init, given), run, outputs, _common.OWN_LAYERS)


@contextmanager
def intercepted(
    asked: bool, mode: _flags.Mode, given: Variables, seen: list, *, stochastic: Sequence = (), frozen: Sequence = ()
) -> Iterator[None]:
    """Tells linen layers that are called meanwhile the mode, and keeps what batch normalisation is told in ``seen``."""
    import flax.linen as nn

    known = _flags.Layers((nn.Dropout, nn.MultiHeadDotProductAttention, *stochastic), (nn.BatchNorm, *frozen), asked)

    def intercept(next_call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        layer, own = context.module, getattr(type(context.module), "__call__", None)  # noqa: B004
        layers = known.with_norm(layer, _keeps_statistics(layer))
        if context.method_name == "setup" and asked and not isinstance(layer, layers.norms):
            vars(layer).update(_flags.of_layer(layer, mode is not _flags.Mode.EVALUATE))
        if context.method_name != "__call__" or own is None:
            return next_call(*args, **kwargs)
        rests = _pretrained.rests(given, layer.path)
        args, kwargs, attributes = layers.told(layer, own, args, kwargs, mode, rests)
        before = {name: vars(layer)[name] for name in attributes}
        vars(layer).update(attributes)  # of a clone that flax bound for this call, not of the user's object
        seen.append(rests or layers.learns(layer, own, args, kwargs))
        try:
            return next_call(*args, **kwargs)
        finally:
            vars(layer).update(before)

    with nn.intercept_methods(intercept):
        yield


def _keeps_statistics(layer: Any) -> bool:
    """Whether there are batch statistics in a layer itself and no layers: a normalisation, whatever its class."""
    parts = [layer.variables.get(name, {}) for name in ("batch_stats", "params")]
    return bool(parts[0]) and not any(isinstance(leaf, Mapping) for part in parts for leaf in part.values())


def _same_shapes(left: PyTree, right: PyTree) -> bool:
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (left, right)]
    return shapes[0] == shapes[1]
