"""Networks of any module system as four pure functions, :class:`~baal_jax.typing.Model`.

The only file that knows flax. No network has to be edited: a stock module with one ``train: bool`` works, whether the
flag is a constructor argument, a keyword or a position. In prediction dropout is on, batch normalisation uses its
running statistics, and one key is one function. In evaluation mode, dropout is off and no key is needed.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jax.interpreters import partial_eval

from baal_jax._util import random
from baal_jax.typing import Key, Model, PyTree, Variables

_Apply = Callable[[Variables, PyTree, Key], PyTree]
_Flags = Mapping[str, bool]
_Run = tuple[PyTree, PyTree]  # outputs, collections

# Values that the usual flags have in training.
_ON, _OFF = ("train", "training", "is_training"), ("deterministic", "inference", "use_running_average")
_TRAINING: _Flags = {**dict.fromkeys(_ON, True), **dict.fromkeys(_OFF, False)}
_EVALUATION = {name: not value for name, value in _TRAINING.items()}
_OWN_LAYERS = "name your own random layers: from_linen(…, stochastic=(MyLayer,)), from_nnx(…, stochastic=(MyLayer,))"


def from_functions(
    init: Callable[[Key, PyTree], PyTree],
    apply: Callable[[PyTree, PyTree, Key], PyTree],
    deterministic: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Model:
    """A network from the functions of any library (Haiku, Equinox, your own).

    Args:
        init: ``(key, inputs [B, …]) -> params``.
        apply: ``(params, inputs [B, …], key) -> outputs [B, …, C]``, with dropout on. Training calls it with a batch;
            prediction calls it with one example at a time under ``vmap``, so that one key is one function.
        deterministic: ``(params, inputs [B, …]) -> outputs [B, …, C]``, with dropout off, for what reads the network
            in evaluation mode (``features``). Not needed for an ``apply`` that does not use its key.

    Returns:
        A :class:`~baal_jax.typing.Model`. Its ``deterministic`` raises ``ValueError`` where ``apply`` is random and
        nothing else was given.

    Example:
        >>> import baal_jax as baal
        >>> def init(key, inputs):
        ...     return jax.random.normal(key, (inputs.shape[-1], 3))
        >>> def apply(params, inputs, key):
        ...     return (inputs * jax.random.bernoulli(key, 0.5, inputs.shape)) @ params
        >>> model = baal.from_functions(init, apply)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> model.apply(variables, jnp.ones((2, 4)), jax.random.key(1)).shape
        (2, 3)
    """

    def run(variables: Variables, inputs: PyTree, key: Key, keywords: Mapping, flags: _Flags | None) -> _Run:
        del keywords
        if flags is _EVALUATION and deterministic is not None:
            return deterministic(variables.params, inputs), variables.collections
        return apply(variables.params, inputs, key), variables.collections

    cure = "pass from_functions(…, deterministic=(params, inputs) -> outputs), the network with dropout off"
    return _model(lambda key, inputs: Variables(init(key, inputs), {}), run, {}, {}, cure)


def from_linen(
    module: Any,
    *,
    stochastic: Sequence[type] = (),
    frozen: Sequence[type] = (),
    rng_collections: Sequence[str] = ("dropout",),
    train_kwargs: Mapping[str, Any] | None = None,
    predict_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """A network from a flax linen module, unedited.

    The module is called in training mode: flags named ``train``, ``training``, ``is_training``, ``deterministic``,
    ``inference`` or ``use_running_average`` are set, in the constructor or in ``__call__``. In prediction
    ``nn.Dropout`` and ``nn.MultiHeadDotProductAttention`` are held on and ``nn.BatchNorm`` is held in evaluation mode,
    whatever the module asks of them. In evaluation mode, that is where all of them and the flags are.

    Args:
        module: a linen module, called as ``module(inputs)`` or with one of the flags above. Several inputs are one
            tuple or dict; wrap a module that takes them one by one.
        stochastic: classes of your own to keep random in prediction (DropPath, noise layers), by the same flags.
        frozen: classes of your own to keep in evaluation mode in prediction (normalisation with running statistics).
        rng_collections: names of the random streams that the module reads.
        train_kwargs: keywords of ``__call__`` in training, in place of those flags.
        predict_kwargs: keywords of ``__call__`` in prediction, by default those of training. Pass
            ``{"train": False}`` for a module whose training mode changes what it returns.

    Returns:
        A :class:`~baal_jax.typing.Model`; training carries every collection except ``params`` and what is sown.

    Example:
        >>> import baal_jax as baal, flax.linen as nn
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

    random_classes, frozen_classes = (nn.Dropout, nn.MultiHeadDotProductAttention, *stochastic), (nn.BatchNorm, *frozen)
    if not issubclass(type(module), nn.Module):
        shown = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise TypeError(f"module is {shown}: pass a linen module, such as Net(), and an nnx one to from_nnx")
    call = type(module).__call__
    # A flag is a field of the module or an argument of its call; where it is both, flax refuses to be told twice, and
    # the field wins. What the module then asks of the layers inside is its own affair, and overridden layer by layer.
    fields = [name for name in _TRAINING if name in type(module).__dataclass_fields__]
    if train_kwargs is None:
        train_kwargs = {name: value for name, value in _call_flags(call).items() if name not in fields}

    def told(flags: _Flags) -> Any:
        return module.clone(**{name: flags[name] for name in fields}) if fields else module

    def intercept(forced: list, next_call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        layer, flags = context.module, _flags_for(context.module, forced)
        if context.method_name != "__call__" or flags is None:
            return next_call(*args, **kwargs)
        args, kwargs, attributes = _force(type(layer).__call__, layer, args, kwargs, flags)
        before = {name: getattr(layer, name) for name in attributes}
        for name, value in attributes.items():
            object.__setattr__(layer, name, value)  # a clone that flax bound for this call, not the user's object
        try:
            return next_call(*args, **kwargs)
        finally:
            for name, value in before.items():
                object.__setattr__(layer, name, value)

    def streams(key: Key) -> dict[str, Key]:
        return {name: jax.random.fold_in(key, i) for i, name in enumerate(rng_collections)}

    def run(variables: Variables, inputs: PyTree, key: Key, keywords: Mapping, flags: _Flags | None) -> _Run:
        mode = _TRAINING if flags is None else flags
        forced = [(random_classes, mode), *([] if flags is None else [(frozen_classes, _EVALUATION)])]
        args, kwargs = _call_arguments(call, inputs, keywords)
        arrays = {"params": variables.params, **variables.collections}
        mutable = list(variables.collections)  # even in prediction: what a module writes there is dropped, not refused
        with nn.intercept_methods(partial(intercept, forced)):
            outputs, collections = told(mode).apply(arrays, *args, rngs=streams(key), mutable=mutable, **kwargs)
        return outputs, dict(collections)

    def init(key: Key, inputs: PyTree) -> Variables:
        key_params, key_streams = jax.random.split(key)
        args, kwargs = _call_arguments(call, inputs, train_kwargs)
        arrays = told(_TRAINING).init({"params": key_params, **streams(key_streams)}, *args, **kwargs)
        collections = {name: value for name, value in arrays.items() if name != "params"}
        variables = Variables(arrays.get("params", {}), collections)
        # What a call makes longer was sown: it is a record of calls, not state of the network.
        after = jax.eval_shape(lambda: run(variables, inputs, key_streams, train_kwargs, None)[1])
        state = {name: value for name, value in collections.items() if _same_shapes(value, after.get(name))}
        return variables._replace(collections=state)

    return _model(init, run, train_kwargs, predict_kwargs, _OWN_LAYERS)


def from_nnx(
    module: Any,
    *,
    stochastic: Sequence[type] = (),
    frozen: Sequence[type] = (),
    train_kwargs: Mapping[str, Any] | None = None,
    predict_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """A network from a flax nnx module, unedited.

    Training runs the module as after ``module.train()`` and with the flags of :func:`from_linen` set where ``__call__``
    has them (``rngs`` too). In prediction ``nnx.Dropout`` and ``nnx.MultiHeadAttention`` are held on and
    ``nnx.BatchNorm`` is held in evaluation mode, whatever the module asks of them; in evaluation mode all of them and
    the flags are. Your object is never changed.

    Args:
        module: a function of ``rngs`` (by name or position) that makes the module, from which every ``init`` draws new
            weights; a class with only ``rngs`` to give is one. Or a module, whose weights every ``init`` returns to,
            whatever the key. Random streams must be attributes of the module.
        stochastic: classes of your own to keep random in prediction, by the same flags.
        frozen: classes of your own to keep in evaluation mode in prediction.
        train_kwargs: keywords of ``__call__`` in training, in place of those flags.
        predict_kwargs: keywords of ``__call__`` in prediction, by default those of training.

    Returns:
        A :class:`~baal_jax.typing.Model`. ``nnx.Param`` is trained; every other variable is carried through training.

    Example:
        >>> import baal_jax as baal
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

    random_classes, frozen_classes = (nnx.Dropout, nnx.MultiHeadAttention, *stochastic), (nnx.BatchNorm, *frozen)
    if not callable(module):
        raise TypeError(f"module is a {type(module).__name__}: pass an nnx module, or a function that makes one")
    given = isinstance(module, nnx.Module)
    signature = inspect.signature(module.__init__ if isinstance(module, type) else module)
    by_keyword = "rngs" in signature.parameters

    def make(rngs: Any) -> Any:
        return module(rngs=rngs) if by_keyword else module(rngs)

    def set_flags(network: Any, flags: _Flags) -> None:
        named = {name: value for name, value in flags.items() if name != "train"}  # a method of every nnx module
        network.set_attributes(raise_if_not_found=False, **named)

    template = nnx.clone(module) if given else nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    set_flags(template, _TRAINING)
    graph, _, streams, _, _ = nnx.split(template, nnx.Param, nnx.RngState, nnx.Intermediate, ...)
    stream_leaves, stream_structure = jax.tree.flatten(nnx.to_pure_dict(streams))
    call = type(template).__call__
    train_kwargs = _call_flags(call) if train_kwargs is None else train_kwargs
    takes_rngs = "rngs" in inspect.signature(call).parameters

    def build(variables: Variables, key: Key) -> Any:
        leaves = []
        for i, leaf in enumerate(stream_leaves):  # every stream gets a key of its own, and its count starts again
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                stream = jax.random.fold_in(key, i)
                leaves.append(jax.random.split(stream, leaf.shape) if leaf.shape else stream)
            else:
                leaves.append(jnp.zeros(leaf.shape, leaf.dtype))
        parts = (variables.params, variables.collections, jax.tree.unflatten(stream_structure, leaves))
        return nnx.merge(graph, *(nnx.State(part) for part in parts))

    def variables_of(network: Any) -> Variables:
        _, params, _, _, rest = nnx.split(network, nnx.Param, nnx.RngState, nnx.Intermediate, ...)
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(rest))

    initial = variables_of(template) if given else None

    def init(key: Key, inputs: PyTree) -> Variables:
        del inputs
        return variables_of(make(nnx.Rngs(key))) if initial is None else initial

    def run(variables: Variables, inputs: PyTree, key: Key, keywords: Mapping, flags: _Flags | None) -> _Run:
        network = build(variables, key)
        if flags is not None:
            set_flags(network, flags)
            for _, layer in nnx.iter_modules(network):
                _force_layer(layer, [(random_classes, flags), (frozen_classes, _EVALUATION)])
        if takes_rngs:
            keywords = {**keywords, "rngs": nnx.Rngs(jax.random.fold_in(key, len(stream_leaves)))}
        args, kwargs = _call_arguments(call, inputs, keywords)
        outputs = network(*args, **kwargs)
        return outputs, variables_of(network).collections

    return _model(init, run, train_kwargs, predict_kwargs, _OWN_LAYERS)


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
            f"disagreement scores would be 0. Add dropout with a rate above 0, or {_OWN_LAYERS}"
        )
        raise ValueError(f"the model's output does not depend on the key{otherwise if why is None else why}")


def _model(
    init: Callable[[Key, PyTree], Variables],
    run: Callable[[Variables, PyTree, Key, Mapping, _Flags | None], _Run],
    train_kwargs: Mapping[str, Any],
    predict_kwargs: Mapping[str, Any] | None,
    cure: str,
) -> Model:
    """The four functions from one: its last argument are the flags of random layers, and None in training."""
    predict_kwargs = train_kwargs if predict_kwargs is None else predict_kwargs
    evaluate_kwargs = {name: _EVALUATION.get(name, value) for name, value in predict_kwargs.items()}

    def predict(variables: Variables, inputs: PyTree, key: Key) -> PyTree:
        return run(variables, inputs, key, predict_kwargs, _TRAINING)[0]

    def train(variables: Variables, inputs: PyTree, key: Key) -> _Run:
        return run(variables, inputs, random.vectorised(key), train_kwargs, None)

    def evaluate(variables: Variables, inputs: PyTree, key: Key) -> PyTree:
        return run(variables, inputs, key, evaluate_kwargs, _EVALUATION)[0]

    return Model(init, _one_function(predict), train, _without_randomness(evaluate, cure))


def _one_function(apply: _Apply) -> _Apply:
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


def _without_randomness(apply: _Apply, cure: str) -> Callable[[Variables, PyTree], PyTree]:
    """The same for a network that leaves its key alone; refuses one that does not."""

    def checked(*arguments: PyTree) -> PyTree:
        program, shapes = jax.make_jaxpr(apply, return_shape=True)(*arguments)
        if _reads_last_argument(program):
            raise ValueError(
                "the model's output depends on the key with every known random layer off, so it has no evaluation "
                f"mode: {cure}, or give the function yourself: model._replace(deterministic=…)"
            )
        return jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(program)(*jax.tree.leaves(arguments)))

    rows = _one_function(checked)
    return lambda variables, inputs: rows(variables, inputs, jax.random.key(0))


def _reads_last_argument(program: Any) -> bool:
    used = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))[1]
    return bool(used[-1])


def _same_shapes(left: PyTree, right: PyTree) -> bool:
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (left, right)]
    return shapes[0] == shapes[1]


def _call_flags(call: Callable) -> dict[str, bool]:
    return {name: _TRAINING[name] for name in inspect.signature(call).parameters if name in _TRAINING}


def _call_arguments(call: Callable, inputs: PyTree, keywords: Mapping[str, Any]) -> tuple[tuple, dict]:
    """Arguments after ``self``, positional where the signature insists on it."""
    parameters = inspect.signature(call).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY][2:]
    args = (inputs, *(keywords[name] for name in names if name in keywords))
    return args, {name: value for name, value in keywords.items() if name not in names}


def _flags_for(layer: Any, forced: Sequence[tuple[tuple, _Flags]]) -> _Flags | None:
    return next((flags for classes, flags in forced if isinstance(layer, classes)), None)


def _force(call: Callable, layer: Any, args: tuple, kwargs: dict, flags: _Flags) -> tuple[tuple, dict, dict]:
    """A call with flags forced, wherever the caller put them, and what to set on the layer meanwhile.

    A flag that is an attribute leaves the call, because flax refuses one that is given twice.
    """
    bound = inspect.signature(call).bind_partial(layer, *args, **kwargs)
    attributes = {}
    for name, value in flags.items():
        if hasattr(layer, name) and not callable(getattr(layer, name)):
            attributes[name] = value
            bound.arguments.pop(name, None)
        elif name in bound.signature.parameters:
            bound.arguments[name] = value
    return bound.args[1:], bound.kwargs, attributes


def _force_layer(layer: Any, forced: Sequence[tuple[tuple, _Flags]]) -> None:
    """Gives an nnx layer a class that ignores how its caller sets the flags."""
    flags, cls = _flags_for(layer, forced), type(layer)
    if flags is None:
        return

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs, attributes = _force(cls.__call__, self, args, kwargs, flags)
        for name, value in attributes.items():
            setattr(self, name, value)
        return cls.__call__(self, *args, **kwargs)

    metaclass: Any = type(cls)
    object.__setattr__(layer, "__class__", metaclass(cls.__name__, (cls,), {"__call__": call}))
