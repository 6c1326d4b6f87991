"""Networks of flax nnx."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax.models import _common, _flags, _pretrained
from baal_jax.models._linen import intercepted
from baal_jax.typing import Key, Model, PyTree, Variables

_OF_MODULE = "pass baal.Variables(nnx.state(net, nnx.Param), nnx.state(net, nnx.BatchStat))"


def from_nnx(
    module: Any,
    *,
    stochastic: Sequence[type] = (),
    frozen: Sequence[type] = (),
    train_kwargs: Mapping[str, Any] | None = None,
    predict_kwargs: Mapping[str, Any] | None = None,
    variables: Any = None,
    outputs: Callable[[Any], PyTree] | None = None,
) -> Model:
    """A network from a flax nnx module, unedited.

    Training runs the module as after ``module.train()`` and with the flags of :func:`from_linen` set, in its attributes
    and its call (``rngs`` too), and in those of modules inside. In training and prediction ``nnx.Dropout`` and
    ``nnx.MultiHeadAttention`` are held on, in prediction ``nnx.BatchNorm`` is held in evaluation mode, whatever the
    module asks of them; in evaluation mode all of them and the flags are. Your object is never changed.

    Args:
        module: a function of ``rngs`` (by name or position) that makes the module, from which every ``init`` draws new
            weights; a class with only ``rngs`` to give is one. Or a module, pretrained, whose weights every ``init``
            returns to, whatever the key, and which are arguments of compiled programs. Random streams must be
            attributes of the module.
        stochastic: classes of your own to keep random in prediction, by the same flags.
        frozen: classes of your own to keep in evaluation mode in prediction. Those with ``nnx.BatchStat`` are anyhow.
        train_kwargs: keywords of ``__call__`` in training, in place of those flags.
        predict_kwargs: keywords of ``__call__`` in prediction, by default those of training.
        variables: pretrained parameters of a function's module, all or a part (without a head, say), by their names:
            a nested dict or ``nnx.State``, or :class:`~baal_jax.Variables` of two, the second with batch statistics.
        outputs: what to take of what the module returns, such as ``lambda out: out["logits"]``.

    Returns:
        A :class:`~baal_jax.typing.Model`. ``nnx.Param`` is trained; every other variable is carried through training.

    Example:
        >>> from flax import nnx
        >>> class Net(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.dropout, self.dense = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        ...     def __call__(self, x):
        ...         return self.dense(self.dropout(x))
        >>> model = baal.from_nnx(Net)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> model.apply(variables, jnp.ones((2, 4)), jax.random.key(1)).shape
        (2, 3)
    """
    from flax import nnx

    if not callable(module):
        raise TypeError(f"module is a {type(module).__name__}: pass an nnx module, or a function that makes one")
    random, norms = (nnx.Dropout, nnx.MultiHeadAttention, *stochastic), (nnx.BatchNorm, *frozen)
    layers = _flags.Layers(random, norms, train_kwargs is None)
    given = isinstance(module, nnx.Module)
    by_keyword = "rngs" in inspect.signature(module.__init__ if isinstance(module, type) else module).parameters

    def losses(path: tuple, leaf: Any) -> bool:
        own = getattr(leaf, "type", type(leaf))
        named = issubclass(own, nnx.Variable) if isinstance(own, type) else False
        return named and ("loss" in own.__name__.lower() or (own is nnx.Intermediate and "loss" in str(path[-1])))

    make = lambda rngs: module(rngs=rngs) if by_keyword else module(rngs)  # noqa: E731
    split = lambda network: nnx.split(network, nnx.Param, nnx.RngState, losses, nnx.Intermediate, ...)  # noqa: E731

    def pieces() -> PyTree:
        network: Any = nnx.clone(module) if given else make(nnx.Rngs(0))
        for _, layer in nnx.iter_modules(network):
            _set(layer, _flags.of_layer(layer, True))
        graph, params, streams, _, _, rest = split(network)
        arrays = [path for path, leaf in nnx.to_flat_state(rest) if not isinstance(leaf, nnx.Variable)]
        static[:] = graph, type(network), arrays, _flags.keywords(network, type(network).__call__, *asked)
        kept = {"params": nnx.to_pure_dict(params), "collections": nnx.to_pure_dict(rest)}
        static.append(jax.tree.map(lambda _: 0, kept))
        return nnx.to_pure_dict(streams)

    static: list = []
    asked = train_kwargs, predict_kwargs
    streams = pieces() if given else jax.eval_shape(pieces)
    try:
        hash(static[0])
    except TypeError:  # a plain array among the attributes, which flax takes for static where it is traced
        streams = pieces()
    stream_leaves, stream_structure = jax.tree.flatten(streams)
    graph, cls, plain, keywords, places = static
    call = cls.__call__
    asks = inspect.signature(call).parameters.get("rngs")
    as_key = asks is not None and any(kind in str(asks.annotation) for kind in ("Array", "Key"))

    def build(variables: Variables, key: Key) -> Any:
        leaves = []
        for i, leaf in enumerate(stream_leaves):  # every stream gets a key of its own, and its count starts again
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                stream = jax.random.fold_in(key, i)
                leaves.append(jax.random.split(stream, leaf.shape) if leaf.shape else stream)
            else:
                leaves.append(jnp.zeros(leaf.shape, leaf.dtype))
        parts = (variables.params, variables.collections, jax.tree.unflatten(stream_structure, leaves))
        try:
            return nnx.merge(graph, *(nnx.State(part) for part in parts))
        except (TypeError, ValueError):
            _pretrained.require_all(places, dict(zip(("params", "collections"), parts, strict=False)), _OF_MODULE)
            raise

    def variables_of(network: Any) -> tuple[Variables, PyTree]:
        _, params, _, lost, _, rest = split(network)
        collections = nnx.to_pure_dict(rest)
        for path in plain:
            node, place = network, collections
            for name in path:
                node = getattr(node, name) if hasattr(node, str(name)) else node[name]
                place = place.setdefault(name, node if name is path[-1] else {})
        return Variables(nnx.to_pure_dict(params), collections), nnx.to_pure_dict(lost)

    def init(key: Key, inputs: PyTree) -> Variables:
        fresh, seen = variables_of(module if given else make(nnx.Rngs(key)))[0], []
        if layers.asked and inputs is not None:
            jax.eval_shape(lambda: run(fresh, inputs, key, _flags.Mode.TRAIN, seen))
            _common.require_learning(seen)
        return fresh

    def run(variables: Variables, inputs: PyTree, key: Key, mode: _flags.Mode, seen: list | None = None) -> tuple:
        variables = _of_states(variables)
        network, seen = build(variables, key), [] if seen is None else seen
        own_key = jax.random.fold_in(key, len(stream_leaves))
        spare = nnx.Rngs(jax.random.fold_in(own_key, 1))  # for layers that were made without a stream
        for path, layer in nnx.iter_modules(network):
            rests = _pretrained.rests(variables, path)
            # A module with batch statistics and no modules in it is a normalisation, whatever its class.
            statistics = any(isinstance(leaf, nnx.BatchStat) for leaf in vars(layer).values())
            kinds = layers.with_norm(layer, statistics and len(list(nnx.iter_modules(layer))) == 1)
            _set(layer, _flags.of_layer(layer, kinds.training(layer, mode, rests)))
            if layer is not network or isinstance(layer, kinds.random + kinds.norms):
                _tell(layer, kinds, mode, rests, seen, spare)
        more = {} if asks is None else {"rngs": own_key if as_key else nnx.Rngs(own_key)}
        args, kwargs = _flags.arguments(call, inputs, {**keywords[mode], **more}, key, mode)
        with intercepted(layers.asked, mode, variables, seen):  # nnx.bridge
            returned = network(*args, **kwargs)
        after, lost = variables_of(network)
        return returned, _common.with_losses(after.collections, lost if mode is _flags.Mode.TRAIN else None)

    if not given and variables is None:
        return _common.model_of(init, run, outputs, _common.OWN_LAYERS)
    pure = variables if isinstance(variables, Variables) else Variables(variables, {})
    pure = variables_of(module)[0] if given else _of_states(pure)
    return _common.model_of(_pretrained.starting_from(init, pure), run, outputs, _common.OWN_LAYERS)


def _of_states(variables: Variables) -> Variables:
    """Variables as dicts, of States as a trained module has them; its random streams are left out."""
    from flax import nnx

    states = [part for part in variables[:2] if isinstance(part, nnx.State)]
    if not states:
        return variables
    parts = nnx.split_state(nnx.merge_state(*states), nnx.Param, nnx.RngState, nnx.Intermediate, ...)
    pure = [{} if isinstance(part, nnx.State) else part for part in variables[:2]]  # of two kinds both count
    params, rest = ({**nnx.to_pure_dict(part), **own} for part, own in zip((parts[0], parts[3]), pure, strict=True))
    return Variables(params, rest)


def _set(layer: Any, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(layer, name, value)


def _tell(layer: Any, layers: _flags.Layers, mode: _flags.Mode, rests: bool, seen: list, spare: Any) -> None:
    """Gives a layer a class whose calls are told what ``layers`` say."""
    cls = type(layer)
    if not callable(layer) or not _flags.of_call(cls.__call__, True):
        return

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs, attributes = layers.told(self, cls.__call__, args, kwargs, mode, rests)
        _set(self, attributes)
        if isinstance(layer, layers.random) and getattr(self, "rngs", spare) is kwargs.get("rngs") is None:
            kwargs["rngs"] = spare
        seen.append(rests or layers.learns(self, cls.__call__, args, kwargs))
        return cls.__call__(self, *args, **kwargs)

    metaclass: Any = type(cls)
    object.__setattr__(layer, "__class__", metaclass(cls.__name__, (cls,), {"__call__": call}))
