"""Training flags of any name, and what a layer is told about them."""

import inspect
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

_Told = tuple[tuple, dict, dict]  # args, kwargs, attributes to set meanwhile
# In the first two flags say training; in the first alone batch statistics are learnt.
Mode = Enum("Mode", ["TRAIN", "PREDICT", "EVALUATE"])

_ON = {"train", "training", "istrain", "istraining", "stochastic", "dropout"}
_OFF = {"deterministic", "inference", "infer", "eval", "evaluate", "evaluation", "test", "testing", "average"}
_KEYS = {"key", "rng", "prng", "prng_key", "rng_key", "dropout_rng", "dropout_key"}
_BESIDE = {"is", "in", "do", "at", "mode", "phase", "time", "flag", "use", "running", "enable", "apply"}


def value_of(name: str, training: bool) -> bool | None:
    """What a flag called ``name`` is in training, or not in training; None where the name is not that of a flag."""
    words = {word for word in re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_") if word}
    said = words - _BESIDE
    if len(said) != 1 or words == {"average"}:
        return None
    return training if said <= _ON else not training if said <= _OFF else None


def of_call(call: Callable, training: bool) -> dict[str, bool]:
    """The flags among the parameters of a call: by their names, and no others than booleans."""
    flags = {}
    for name, parameter in inspect.signature(call).parameters.items():
        value, annotation = value_of(name, training), parameter.annotation
        boolean = annotation is parameter.empty or "bool" in str(annotation) or annotation is Any
        if value is not None and boolean and isinstance(parameter.default, bool | None | type):
            flags[name] = value
    return flags


def of_layer(layer: Any, training: bool) -> dict[str, bool]:
    """The flags among the attributes of a layer that are set; what has dropout in it is a matter of architecture."""
    values = {name: value_of(name, training) for name, value in vars(layer).items() if isinstance(value, bool)}
    return {name: value for name, value in values.items() if value is not None and "dropout" not in name.lower()}


def arguments(call: Callable, inputs: Any, keywords: Mapping[str, Any], key: Any, mode: Mode) -> tuple[tuple, dict]:
    """Arguments after ``self``: inputs, flags and, where the call asks for one, a key.

    A dict goes in by keyword where its keys are parameters, a tuple by position where there are as many, all else as
    the one input, by keyword where there is no other way.
    """
    parameters = [*inspect.signature(call).parameters.values()][1:]  # without self
    flags = {*of_call(call, True), *keywords}
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    inputs_by_name = inputs._asdict() if hasattr(inputs, "_asdict") else inputs
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    places = [p for p in positional if p.name not in flags]
    needed = [p for p in places if p.default is p.empty and not _is_key(p)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    given: dict[str, Any] = {}
    if isinstance(inputs_by_name, Mapping) and inputs_by_name and set(inputs_by_name) <= set(named):
        args, given = (), dict(inputs_by_name)
    elif type(inputs) is tuple and (any_number or (len(inputs) > 1 and len(needed) <= len(inputs) <= len(places))):
        args = inputs
    elif not places and not any_number:
        args, given = (), dict.fromkeys([name for name in named if name not in flags][:1], inputs)
    else:
        args = (inputs,)
    taken = {*given, *(p.name for p in places[: len(args)])}
    asks = [p.name for p in named.values() if _is_key(p) and (mode is not Mode.EVALUATE or p.default is p.empty)]
    given |= {name: key for name in asks if name not in taken and name not in keywords}
    by_position = [p.name for p in positional if p.kind is p.POSITIONAL_ONLY]
    args = (*args, *(keywords[name] for name in by_position[len(args) :] if name in keywords))
    return args, {**given, **{name: value for name, value in keywords.items() if name not in by_position}}


def _is_key(parameter: inspect.Parameter) -> bool:
    """Whether a parameter wants a key: by its name, or by the end of it where there is no call without it."""
    required = parameter.default is parameter.empty
    return parameter.name in _KEYS or (required and parameter.name.endswith(("_key", "_rng")))


def keywords(
    module: Any, call: Callable, train_kwargs: Mapping[str, Any] | None, predict_kwargs: Mapping[str, Any] | None
) -> dict[Mode, Mapping[str, Any]]:
    """Keywords of the outermost call. Where a flag is a field as well, flax refuses both, and the field wins."""
    if train_kwargs is None:
        fields = of_layer(module, True)
        train_kwargs = {name: value for name, value in of_call(call, True).items() if name not in fields}
    predict_kwargs = train_kwargs if predict_kwargs is None else predict_kwargs
    off = of_call(call, False)
    evaluate_kwargs = {name: off.get(name, value) for name, value in predict_kwargs.items()}
    return {Mode.TRAIN: train_kwargs, Mode.PREDICT: predict_kwargs, Mode.EVALUATE: evaluate_kwargs}


class Layers(NamedTuple):
    """Which layers are told what.

    Attributes:
        random: classes that are held on in training and prediction, and off in evaluation mode.
        norms: classes that are held in evaluation mode in prediction; in training they do as they are told.
        asked: whether all others are told what their callers leave out.
    """

    random: tuple[type, ...]
    norms: tuple[type, ...]
    asked: bool

    def with_norm(self, layer: Any, is_norm: bool) -> "Layers":
        """The same, with the class of ``layer`` among ``norms`` where it is one."""
        return self._replace(norms=(*self.norms, type(layer))) if is_norm else self

    def told(self, layer: Any, call: Callable, args: tuple, kwargs: Mapping, mode: Mode, rests: bool) -> _Told:
        """A call with its flags, and the attributes to set meanwhile; ``rests`` where nothing in the layer is trained.

        A layer that is held is told whatever its caller says, any other what its caller leaves out. A flag that is an
        attribute leaves the call, because flax refuses one that is given twice.
        """
        training, is_norm = self.training(layer, mode, rests), isinstance(layer, self.norms)
        held = not training if is_norm else isinstance(layer, self.random)
        if not (is_norm or held or self.asked):
            return args, dict(kwargs), {}
        bound = inspect.signature(call).bind_partial(layer, *args, **kwargs)
        flags, attributes = of_call(call, training), of_layer(layer, training) if held or not is_norm else {}
        if held:
            attributes |= {name: value for name, value in flags.items() if name in vars(layer)}
        for name, value in flags.items():
            if name in attributes:
                bound.arguments.pop(name, None)
            elif held or (name not in bound.arguments and not isinstance(vars(layer).get(name), bool)):
                bound.arguments[name] = value
        return bound.args[1:], bound.kwargs, attributes

    def training(self, layer: Any, mode: Mode, rests: bool) -> bool:
        return mode is Mode.TRAIN and not rests if isinstance(layer, self.norms) else mode is not Mode.EVALUATE

    def learns(self, layer: Any, call: Callable, args: tuple, kwargs: Mapping) -> bool | None:
        """Whether a call in training learns batch statistics; None of a layer that has none."""
        if not isinstance(layer, self.norms):
            return None
        bound = inspect.signature(call).bind_partial(layer, *args, **kwargs).arguments
        flags = {name: bound.get(name, vars(layer).get(name)) for name in of_call(call, True)}
        return not any(value is not None and value is not of_call(call, True)[name] for name, value in flags.items())
