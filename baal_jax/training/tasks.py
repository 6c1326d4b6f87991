"""What is learnt, and the door through which data come in.

A loss says what the outputs of a network mean, so a task is known by its loss. It brings metrics and the heuristics
that read such outputs, and says which targets are right: :func:`admit` refuses others, where values are concrete.
"""

from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import losses, metrics
from baal_jax._util import checks, meshes, sources
from baal_jax.typing import Array, Dataset, PaddedDataset, Posterior, PyTree


class Task(NamedTuple):
    """What a loss learns.

    Attributes:
        name: of the task.
        metrics: builder of the :class:`~baal_jax.metrics.MetricSet` that is reported by default.
        heuristic: how its outputs are scored, in words.
    """

    name: str
    metrics: Callable[..., metrics.MetricSet]
    heuristic: str

    def __repr__(self) -> str:
        return f"tasks.{self.name}"


classification = Task("classification", metrics.classification, "heuristics.bald")
"""One of ``C`` classes: logits ``[…, C]``; targets ``int[…]``, or probabilities ``[…, C]`` of an own loss."""
multi_label = Task("multi_label", metrics.multi_label, "heuristics.multi_label(heuristics.bald)")
"""``C`` labels, each of which is there or not: a logit for each, ``[…, C]``; targets 0 and 1 of the same shape."""
regression = Task("regression", metrics.regression, "heuristics.variance")
"""Real values ``[…, C]``; targets of the same shape, or ``[…]`` for a single one."""
gaussian_regression = Task("gaussian_regression", metrics.gaussian_regression, "heuristics.gaussian_bald")
"""``C`` means and then ``C`` log-variances, ``[…, 2C]``; targets ``[…, C]``, or ``[…]`` for a single one."""

_OF_LOSS = {losses.cross_entropy: classification, losses.binary_cross_entropy: multi_label}
_OF_LOSS |= {losses.squared_error: regression, losses.gaussian_nll: gaussian_regression}
_TRACED: WeakKeyDictionary[Callable, dict] = WeakKeyDictionary()  # shapes of outputs, which take a trace to know


def of_loss(loss: Callable) -> Task | None:
    """The task of a loss of :mod:`baal_jax.losses`, options bound or not; None for any other."""
    while isinstance(loss, partial):
        loss = loss.func
    return next((task for known_loss, task in _OF_LOSS.items() if known_loss is loss), None)


def task_of(trainer: Any) -> Task | None:
    """What a trainer learns; None for one that does not say."""
    return getattr(trainer, "task", None)


def of_targets(targets: Any, outputs: tuple[int, ...]) -> Task | None:
    """The task of a loss that is not known, from targets and the shape ``(N, …, C)`` of outputs; None if unclear."""
    whole, size = not jnp.issubdtype(targets.dtype, jnp.floating), outputs[-1]
    values = meshes.on_host(targets) if _has_values(targets) else None
    binary = values is not None and bool(np.isin(values[~_unknown(values, None)], (0, 1)).all())
    if targets.shape == outputs[:-1] or (targets.shape == (*outputs[:-1], 1) and size > 1):
        if size > 1:
            return classification if whole else None
        return None if whole and (values is None or binary) else regression
    if targets.shape != outputs:
        return None
    if values is None:
        return multi_label if targets.dtype == bool else regression if size == 1 and not whole else None
    rows = values if whole else values[~np.isnan(values).any(axis=-1)]
    if size > 1 and (rows >= 0).all() and np.allclose(rows.sum(axis=-1, dtype=np.float64), 1.0, atol=1e-3):
        return classification
    return multi_label if binary else None if whole else regression


def known(targets: Any, task: Task | None, outputs: tuple[int, ...] | None = None) -> Any:
    """``bool[N, …]``, where targets are known: in classes −1 and −100 are not, in real values NaN is not."""
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return targets >= 0 if task is multi_label else ~jnp.isnan(targets)
    if task in (regression, gaussian_regression) or (task is None and outputs is not None and outputs[-1] == 1):
        return jnp.ones(targets.shape, bool)  # whole numbers that are measured: −1 is a value
    return targets >= 0 if task is not None or targets.dtype == bool else (targets != -1) & (targets != -100)


def admit(
    name: str,
    dataset: Any,
    task: Task | None = None,
    outputs: Callable[[], tuple[int, ...] | None] = lambda: None,
    *,
    complete: Any = None,
) -> Task | None:
    """The door: refuses a data set that is not right, in one pass over what is concrete.

    Args:
        name: of the argument.
        dataset: what came in.
        task: what is learnt, if that is known.
        outputs: gives the shape ``(N, …, C)`` of the network's outputs, or None; asked once the inputs are right.
        complete: ``bool[N]``, examples whose target must be known, for a simulation looks it up.

    Returns:
        The task, read from the targets where it was not known, or None where these do not tell.

    Raises:
        TypeError: what came in is no data set of arrays.
        ValueError: rows that are not right, with their values and the cure.

    Example:
        >>> digits = baal.Dataset(jnp.eye(3), jnp.array([0, 1, 1]))
        >>> baal.tasks.admit("digits", digits, baal.tasks.classification).name
        'classification'
    """
    if not isinstance(dataset, Dataset | PaddedDataset):
        raise TypeError(f"{name} is a {type(dataset).__name__}: pass baal_jax.Dataset(inputs, targets)")
    inputs, targets = dataset
    if hasattr(inputs, "to_numpy") or hasattr(inputs, "toarray") or not sources.is_source(inputs):
        _require_arrays(f"{name}.inputs", inputs)
        if not (count := checks.leading_axis(f"{name}.inputs", inputs)):
            raise ValueError(f"{name} is empty: give examples")
        for leaf in jax.tree.leaves(inputs):
            _require_finite(f"{name}.inputs", leaf)
    elif isinstance(inputs, list) and inputs and isinstance(inputs[0], list | float | int | str):
        raise TypeError(f"{name}.inputs is a list of {type(inputs[0]).__name__}: pass an array, numpy.asarray(inputs)")
    else:
        count = len(inputs)
    if targets is None:
        return task
    _require_arrays(f"{name}.targets", targets)
    if not hasattr(targets, "shape"):  # of several outputs, whose loss and metrics are the user's
        checks.leading_axis(name, dataset if not sources.is_source(inputs) else targets)
        return task
    if targets.shape[:1] != (count,):
        raise ValueError(f"{name} has {count} inputs, but targets of shape {targets.shape}: give one for each input")
    if _has_values(targets):  # what needs no outputs first: these come from a trace, which may fail of the same fault
        _require_targets(f"{name}.targets", meshes.on_host(targets), task, None)
    shape = outputs()
    if task is None and shape is not None:
        task = of_targets(targets, shape)
    if _has_values(targets):
        values = meshes.on_host(targets)
        _require_targets(f"{name}.targets", values, task, shape)
        if complete is not None:
            _require_answers(f"{name}.targets", values, task, meshes.on_host(complete))
    return task


def metrics_of(
    name: str, posterior: Posterior, state: PyTree, dataset: Dataset, given: metrics.MetricSet | None = None
) -> metrics.MetricSet:
    """What is evaluated on a data set, which is looked at on the way: ``given``, or the metrics of the task."""
    task = admit(name, dataset, posterior.task, partial(output_shape, posterior, state, dataset))
    if dataset.targets is None:
        raise ValueError(f"{name} has no targets to evaluate on: give some")
    if given is not None:
        return given
    if task is None:
        cure = "say what the loss learns, baal_jax.trainer(task=baal_jax.tasks.…), or pass metrics="
        shown = f"{dataset.targets.dtype}{dataset.targets.shape}"
        raise ValueError(f"metrics of {name} are not clear from targets {shown}: {cure}")
    return _built(task.metrics)


@cache
def _built(metrics_by_default: Callable[..., metrics.MetricSet]) -> metrics.MetricSet:
    return metrics_by_default()  # one, so that loops of the same task are seen to be evaluated alike


def output_shape(posterior: Posterior, state: PyTree, dataset: Dataset) -> tuple[int, ...] | None:
    """Shape ``(N, …, C)`` of what a draw predicts on a data set, without computing it; None for several outputs."""
    if posterior.apply is None or posterior.sample is None:
        return None
    inputs = sources.shapes_of(dataset.inputs) if sources.is_source(dataset.inputs) else dataset.inputs
    rows = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)

    def one(key: Array, state: PyTree, inputs: PyTree) -> PyTree:
        return posterior.apply(state, jax.tree.map(lambda leaf: leaf[0], posterior.sample(key, state, 1)), inputs)

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), state), rows
    leaves, structure = jax.tree.flatten(shapes)
    try:
        seen = _TRACED.setdefault(posterior.apply, {})
    except TypeError:  # of a kind that cannot be remembered
        seen = {}
    key = id(posterior.sample), structure, tuple(leaves)
    if key not in seen:
        seen[key] = getattr(jax.eval_shape(one, jax.random.key(0), *shapes), "shape", None)
    return (checks.leading_axis("inputs", inputs), *seen[key][1:]) if seen[key] else None


def guarded(fit: Callable, sample: Callable, apply: Callable, task: Task | None) -> Posterior:
    """A posterior whose ``fit`` looks at its data first, where they are concrete."""
    inner = Posterior(fit, sample, apply, task)

    @meshes.auto
    @wraps(fit)
    def checked(key: Array, dataset: Dataset, labelled: Array, previous: Any = None) -> Any:
        vector = dataset
        if task is classification and getattr(getattr(dataset, "targets", None), "shape", ())[1:] == (1,):
            vector = dataset._replace(targets=dataset.targets[:, 0])
        if checks.is_concrete(dataset):
            fitted = partial(shape_of_fit, fit, key, vector, labelled, previous)
            admit("dataset", dataset, task, lambda: output_shape(inner, fitted(), dataset))
        return fit(key, vector, labelled, previous)

    vars(checked).update({name: getattr(fit, name) for name in ("lower", "eval_shape") if hasattr(fit, name)})
    return inner._replace(fit=checked)


def shape_of_fit(fit: Callable, key: Array, dataset: Dataset, *others: Any) -> PyTree:
    """What ``fit`` would return, as shapes; it sees targets that are concrete, of which classes may be counted."""
    targets = dataset.targets
    if not isinstance(targets, np.ndarray | jax.Array) or not checks.is_concrete(targets):
        return jax.eval_shape(fit, key, dataset, *others)
    targets = jnp.asarray(targets)
    seen = lambda key, inputs, *others: fit(key, Dataset(inputs, targets), *others)  # noqa: E731
    return jax.eval_shape(seen, key, dataset.inputs, *others)


def _has_values(leaf: Any) -> bool:
    return checks.is_concrete(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct)


def _unknown(values: np.ndarray, task: Task | None) -> np.ndarray:
    if values.dtype.kind not in "biu":
        return ~(values >= 0) if task is multi_label else np.isnan(values)
    return np.zeros(values.shape, bool) if task in (regression, gaussian_regression) else values < 0


def _rows(wrong: Any) -> str:
    first = np.flatnonzero(wrong)
    shown = ", ".join(str(row) for row in first[:3]) + (", …" if len(first) > 3 else "")
    return f"{len(first)} of {len(wrong)} rows ({shown})"


def _require_arrays(name: str, tree: Any) -> None:
    for leaf in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, list)):
        if not isinstance(leaf, np.ndarray | jax.Array | jax.ShapeDtypeStruct):
            own = next((f"{name}.{how}()" for how in ("to_numpy", "toarray") if hasattr(leaf, how)), None)
            cure = own or f"numpy.asarray({name})"
            raise TypeError(f"{name} holds a {type(leaf).__name__}: pass NumPy or JAX arrays, {cure}")
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biufV":  # V: bfloat16 and its like
            raise TypeError(f"{name} hold {leaf.dtype}, not numbers: encode them first, classes as 0, 1, 2, …")


def _require_finite(name: str, leaf: Any) -> None:
    if not _has_values(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return
    if isinstance(leaf, np.ndarray) or (leaf.is_fully_addressable and leaf.devices() == {jax.devices("cpu")[0]}):
        leaf = np.asarray(leaf)
        with np.errstate(all="ignore"):  # a sum that is finite holds nothing that is not, and takes no memory
            if np.isfinite(leaf.sum()):
                return
    wrong = ~meshes.on_host(jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1))
    if wrong.any():
        raise ValueError(f"{name} are not finite in {_rows(wrong)}: impute these values, or leave the rows out")


def _require_targets(name: str, values: np.ndarray, task: Task | None, outputs: tuple[int, ...] | None) -> None:
    """Values that the task allows."""

    def refuse(wrong: np.ndarray, why: str) -> None:
        if wrong.any():
            rows = _rows(wrong.reshape(len(values), -1).any(axis=1))
            raise ValueError(f"{name} hold {values[wrong][0]} in {rows}: {why}")

    whole = values.dtype.kind in "biu"
    if not whole:
        refuse(np.isinf(values), "give finite numbers, and NaN for unknown ones")
    if task in (None, regression, gaussian_regression):
        return
    if whole:
        refuse((values < 0) & (values != -1) & (values != -100), "classes count from 0, and −1 or −100 is unknown")
    if task is multi_label:
        refuse(~_unknown(values, task) & (values != 0) & (values != 1), "a label is there, 1, or not, 0")
    elif whole and outputs is not None:
        most = outputs[-1] - 1
        refuse(values > most, f"outside of the classes 0 to {most} of the outputs; count from 0, or add outputs")
    elif not whole and (values.shape != outputs if outputs else values.ndim < 2):
        raise ValueError(f"{name} are {values.dtype}, but classes are whole numbers: cast with .astype(numpy.int32)")
    elif not whole and outputs is not None:
        wrong = ~np.isclose(values.sum(-1), 1.0, atol=1e-3) & ~np.isnan(values).any(-1)
        refuse(wrong, "probabilities of classes must add up to 1")


def _require_answers(name: str, values: np.ndarray, task: Task | None, complete: np.ndarray) -> None:
    """Targets that a simulation looks up."""
    unknown = _unknown(values, task)
    if unknown.any() and task in (classification, multi_label, None) and set(np.unique(values).tolist()) == {-1, 1}:
        raise ValueError(f"{name} are −1 and 1, and −1 means unknown: pass 0 and 1, (targets > 0).astype(int)")
    missing = unknown.reshape(len(values), -1).all(axis=1) & complete
    if missing.any():
        cure = "leave these rows out, or pool.exclude them; baal_jax.annotation asks people"
        raise ValueError(f"{name} are unknown in {_rows(missing)}, and a simulation looks them up: {cure}")
