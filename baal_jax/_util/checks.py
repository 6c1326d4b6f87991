"""Errors that name the argument, the value and the cure."""

import functools
import importlib
import math
import operator
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax import core

from baal_jax._util import meshes

_UNFIT = r"[^\t\n\r -~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # what XML does not allow, and C1 controls


def positive_int(name: str, value: Any, least: int = 1) -> int:
    """Returns ``value`` as an int of at least ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}")
    return number


def optional_int(name: str, value: Any) -> int | None:
    """Returns ``value`` as a positive int, or None."""
    return None if value is None else positive_int(name, value)


def finite_float(name: str, value: Any, least: float) -> float:
    """Returns ``value`` as a finite float of at least ``least``."""
    if not _is_finite(value) or float(value) < least:
        raise ValueError(f"{name}={value!r} must be a finite number of at least {least}")
    return float(value)


def positive_float(name: str, value: Any) -> float:
    """Returns ``value`` as a finite float above 0."""
    if not _is_finite(value) or float(value) <= 0.0:
        raise ValueError(f"{name}={value!r} must be a finite number above 0")
    return float(value)


def text(name: str, value: Any, lines: bool = False) -> None:
    """Refuses text that files and pages cannot hold, in mappings and lists too; ``lines`` may be several."""
    is_mapping = isinstance(value, Mapping)
    for part in [*value, *value.values()] if is_mapping else value if isinstance(value, list | tuple) else ():
        text(name, part, lines)
    if isinstance(value, str) and (wrong := re.search(_UNFIT if lines else rf"{_UNFIT}|[\t\n\r]", value)):
        raise ValueError(f"{name} holds {_shown(value)}, but {wrong[0]!r} cannot be written: leave it out")


def noise(value: Any) -> float | None:
    """Returns ``value`` as a standard deviation above 0, or None."""
    return None if value is None else positive_float("noise", value)


def function(name: str, value: Any, example: str) -> Any:
    """Returns ``value``, which can be called."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name}={_shown(value)} must be a function, such as {example}")
    return value


def _shown(value: Any) -> str:
    """At most a line, and never the numbers of an array."""
    text = repr(value) if isinstance(value, str | int | float | type) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "…"


def looked_at(compiled: Any, look: Callable[..., Any]) -> Any:
    """A compiled function whose arguments are looked at before each call, by a function of the same arguments."""

    @functools.wraps(compiled)
    def checked(*arguments: Any, **options: Any) -> Any:
        look(*arguments, **options)
        return compiled(*arguments, **options)

    vars(checked).update(lower=compiled.lower, eval_shape=compiled.eval_shape)
    return meshes.auto(checked)


def debugs_nans() -> bool:
    """Whether ``jax_debug_nans`` is on."""
    return jax.config.jax_debug_nans  # pyright: ignore[reportAttributeAccessIssue]


def is_concrete(*trees: Any) -> bool:
    """True outside of jit, vmap and grad, where values can be looked at."""
    return not any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(trees))


def typed_key(name: str, key: Any) -> None:
    """Refuses anything but one typed key."""
    if not isinstance(key, jax.Array) or not jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{name}={_shown(key)} must be a typed key: make one with jax.random.key(seed)")
    if key.shape:
        raise ValueError(f"{name} has shape {key.shape}, but one key is needed: vmap over several keys")


def indices(name: str, values: Any, num_examples: int) -> None:
    """Refuses repeated or out-of-range ids; −1 is padding. Traced values pass: their behaviour is defined instead."""
    ids = meshes.on_host(values) if is_concrete(values) else jax.numpy.asarray(values)
    if ids.size and not jax.numpy.issubdtype(ids.dtype, jax.numpy.integer):
        raise ValueError(f"{name} must be integer ids, not {ids.dtype}: use jnp.flatnonzero(mask)")
    if not isinstance(ids, np.ndarray):
        return
    wrong = ids[(ids < -1) | (ids >= num_examples)]
    if wrong.size:
        raise ValueError(f"{name} holds {wrong[0]}, outside of the {num_examples} examples (−1 is padding)")
    unique, counts = np.unique(ids[ids >= 0], return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{name} holds {unique[counts > 1][0]} more than once: pass each id once")


def draws(name: str, logits: Any) -> None:
    """Refuses what cannot be ``[S, N, …, C]``."""
    if isinstance(logits, list | tuple | dict):
        raise ValueError(f"{name} is a {type(logits).__name__} of outputs: score several with heuristics.combine")
    if logits is None and not name.startswith("target_"):
        raise ValueError(f"{name} is None: there is no fit to predict with, select from embeddings alone")
    if logits is None:
        raise ValueError(f"{name} is None: pass the inputs that matter as target_inputs to step or run")
    if logits.ndim < 3:
        cure = f"draws, examples and classes [S, N, …, C] are needed: [N, C] becomes one draw by {name}[None]"
        raise ValueError(f"{name} has shape {logits.shape}, but {cure}")


def classes(name: str, logits: Any) -> None:
    """Refuses what cannot be ``[S, N, …, C]`` with at least two classes."""
    draws(name, logits)
    if logits.shape[-1] < 2:
        cure = "turn sigmoid outputs into two with heuristics.binary_logits"
        raise ValueError(f"{name} has shape {logits.shape} with a single class: {cure}")


def no_probabilities(name: str, logits: Any) -> None:
    """Refuses probabilities where logits are needed; traced values pass."""
    if not is_concrete(logits) or getattr(logits, "ndim", 0) < 2 or not np.size(logits):
        return
    for rows in (logits[(0,) * (logits.ndim - 1)], logits):  # one row, which tells already in nearly every case
        rows = np.asarray(rows, np.float32)
        if not (rows.min() >= 0 and (np.abs(rows.sum(axis=-1) - 1) < 1e-3).all()):
            return
    raise ValueError(f"{name} of shape {np.shape(logits)} are probabilities: pass logits, or jax.numpy.log({name})")


def one_array(outputs: Any, need: str) -> Any:
    """The only leaf of ``outputs``, which is refused where there are several."""
    leaves = jax.tree.leaves(outputs)
    if len(leaves) != 1:
        raise ValueError(f"the network has {len(leaves)} outputs, but {need}")
    return leaves[0]


def leading_axis(name: str, tree: Any) -> int:
    """The length that all leaves of ``tree`` share as first axis."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1 or lengths == {()}:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
        raise ValueError(f"{name} needs one common leading axis of examples, but its shapes are {shapes}")
    return lengths.pop()[0]


def optional_import(module: str, extra: str | None = None) -> ModuleType:
    """Imports what an extra of the package brings, or a library that none does, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        what = f"'baal_jax[{extra}]'" if extra else module.partition(".")[0].replace("_", "-")
        raise ImportError(f"{module} is needed here: pip install {what}") from error


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float | np.number) and math.isfinite(float(value))
