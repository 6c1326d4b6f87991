"""Axes, records and signatures shared by the whole package.

One glossary, used in every docstring:

``S`` posterior draws · ``N`` examples of the pool · ``M`` target examples · ``B`` examples of one batch ·
``C`` classes (or output dimensions) · ``D`` features · ``Q`` query size · ``R`` rounds.

Draws lead, classes trail and anything may stand between: ``[S, N, …, C]``. A classifier gives ``[S, N, C]``, a
segmentation model ``[S, N, H, W, C]``, a token tagger ``[S, N, T, C]``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax import core

Array = jax.Array
Key = jax.Array  # a typed key, jax.random.key(seed)
PyTree = Any


def short(self: Any) -> str:
    """A record in a few lines: shapes for arrays, values where they are few."""
    fields = ", ".join(f"{name}={_shown(getattr(self, name))}" for name in self._fields)
    text = f"{type(self).__name__}({fields})"
    return text if len(text) <= 900 else f"{text[:899]}…"


def _shown(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        small = isinstance(value, np.ndarray | jax.Array) and value.size <= 12 and value.ndim < 2
        if not small or isinstance(value, core.Tracer) or jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            return f"{value.dtype}{list(value.shape)}"
        return " ".join(np.array2string(np.asarray(value), precision=4, separator=", ").split())
    if isinstance(value, dict | list | tuple) and not hasattr(value, "_fields"):
        leaves = jax.tree.leaves(value)
        if not isinstance(value, dict) or len(leaves) != len(value) or len(leaves) > 12:
            return f"{type(value).__name__} of {len(leaves)} leaves"
        return "{" + ", ".join(f"{name}: {_shown(leaf)}" for name, leaf in value.items()) + "}"
    if callable(value) and not hasattr(value, "_fields"):
        return getattr(value, "__qualname__", type(value).__name__)
    text = repr(value)
    return text if hasattr(value, "_fields") or len(text) <= 80 else f"{text[:79]}…"


class Dataset(NamedTuple):
    """Inputs and targets of a whole data set, of fixed length ``N``.

    Attributes:
        inputs: array, dictionary or tuple of arrays ``[N, …]``; or, where a function says so, a source on the host.
        targets: array ``[N, …]``, or None when no target is known yet. In integer targets −1 stands for unknown.
    """

    inputs: PyTree
    targets: Any = None
    __repr__ = short


@partial(jax.tree_util.register_dataclass, data_fields=("inputs", "targets"), meta_fields=("size",))
@dataclass(frozen=True, repr=False)
class PaddedDataset:
    """A :class:`Dataset` with padding behind its examples, which is never labelled; of :func:`baal_jax.data.shard`.

    Attributes:
        inputs: arrays ``[N, …]``.
        targets: array ``[N, …]``, or None.
        size: how many examples there are; what comes after them is padding.
    """

    inputs: PyTree
    targets: Any
    size: int
    _replace, _fields = replace, ("inputs", "targets", "size")
    __repr__ = short

    def __iter__(self) -> Iterator[Any]:
        return iter((self.inputs, self.targets))


class Predictions(NamedTuple):
    """What a summary may read about one batch of examples. What it does not read, the compiler drops.

    Attributes:
        logits: ``[S, B, …, C]``, unnormalised log-probabilities (or regression outputs), one slice a draw.
        features: ``[B, D]``, from the ``features`` function given to the loop, else None.
        target_logits: ``[S, M, C]``, predictions on the target inputs under the same draws, else None.
        target_features: ``[M, D]``, features of the target inputs, for acquisitions that read them, else None.
    """

    logits: PyTree
    features: Any = None
    target_logits: Any = None
    target_features: Any = None
    __repr__ = short

    @classmethod
    def from_probabilities(cls, probabilities: Any, features: Any = None, target_probabilities: Any = None) -> Any:
        """Predictions of a model that gives probabilities, such as a forest's ``predict_proba`` of every tree.

        Args:
            probabilities: ``[S, N, …, C]``, or ``[N, C]`` of one draw; a ``ValueError`` unless rows add up to 1.
            features: as above.
            target_probabilities: ``[S, M, C]`` on the target inputs.

        Example:
            >>> Predictions.from_probabilities(np.array([[0.5, 0.5], [1.0, 0.0]])).logits.tolist()
            [[[-0.6931471824645996, -0.6931471824645996], [0.0, -inf]]]
        """
        logits = [None if p is None else _log(p) for p in (probabilities, target_probabilities)]
        return cls(logits[0], features, logits[1])


def _log(probabilities: Any) -> Array:
    p = jax.numpy.asarray(probabilities)
    p = p[None] if p.ndim == 2 else p
    if p.ndim < 3:
        raise ValueError(f"probabilities have shape {p.shape}, but [S, N, …, C] or [N, C] is needed: stack the draws")
    if not isinstance(p, core.Tracer):
        wrong = ~np.asarray(jax.numpy.all(p >= 0, -1) & (abs(p.astype(np.float32).sum(-1) - 1) < 1e-3))
        if wrong.any():
            row = np.asarray(p)[wrong][0][:6].tolist()
            raise ValueError(f"{wrong.sum()} rows are no probabilities, such as {row}: pass logits as they are")
    return jax.numpy.log(p.astype(jax.numpy.promote_types(p.dtype, np.float32)))


class Targeted(NamedTuple):
    """What an acquisition keeps of the examples ``[N, …]``, and of the target inputs ``[M, …]``."""

    summary: PyTree
    targets: PyTree


class Selection(NamedTuple):
    """The examples that an acquisition picked.

    Attributes:
        indices: ``int32[Q]`` in order of picking, all distinct, −1 where fewer than ``Q`` were left.
        scores: ``float32[Q]``, the informativeness of each pick (NaN beside −1).
    """

    indices: Array
    scores: Array
    __repr__ = short


class Variables(NamedTuple):
    """All arrays of a network.

    Attributes:
        params: pytree that the optimizer updates.
        collections: pytree of everything else the network keeps (batch statistics, counters).
        frozen: parameters that ``trainable`` of a trainer leaves out, in the places where ``params`` has None.
    """

    params: PyTree
    collections: PyTree
    frozen: PyTree = None
    __repr__ = short


class TrainState(NamedTuple):
    """A trained network.

    Attributes:
        variables: weights and batch statistics.
        opt_state: state of the optimizer, in which methods such as SWAG keep their moments.
        steps: ``int32[]``, updates of the last fit; 0 where it ended with the weights that it began with.
        loss: ``float32[]``, running mean of the training loss over about the last 50 steps.
    """

    variables: Variables
    opt_state: PyTree
    steps: Array
    loss: Array
    __repr__ = short


def of_network(field: str) -> tuple[property, property, property]:
    """Properties ``variables``, ``steps`` and ``loss`` of a state, read off the ``TrainState`` in one of its fields."""
    variables, steps, loss = (property(attrgetter(f"{field}.{name}")) for name in ("variables", "steps", "loss"))
    return variables, steps, loss


def _no_deterministic(_: Variables, __: PyTree) -> PyTree:
    raise ValueError("this model has no evaluation mode: make it with from_functions(init, apply, deterministic)")


class Model(NamedTuple):
    """A network as four pure functions, whichever module system it was written in.

    Attributes:
        init: ``(key, inputs [B, …]) -> Variables``, fresh weights.
        apply: ``(variables, inputs [B, …], key) -> outputs [B, …, C]``, one stochastic function for all rows.
        train: ``(variables, inputs [B, …], key) -> (outputs, collections)``, training mode.
        deterministic: ``(variables, inputs [B, …]) -> outputs [B, …, C]``, evaluation mode, each row on its own.
    """

    init: Callable[[Key, PyTree], Variables]
    apply: Callable[[Variables, PyTree, Key], PyTree]
    train: Callable[[Variables, PyTree, Key], tuple[PyTree, PyTree]]
    deterministic: Callable[[Variables, PyTree], PyTree] = _no_deterministic
    __repr__ = short


class Fit(Protocol):
    """``fit(key, dataset, labelled, previous=None) -> state``."""

    def __call__(self, key: Key, dataset: Dataset, labelled: Array, previous: Any = None) -> Any: ...


Penalty = Callable[[PyTree, Array], Array]  # (params, number of labelled examples) -> float


class Trainer(Protocol):
    """``trainer(model) -> fit``, and what a posterior may add to training.

    ``penalty``: ``(params, num_labelled) -> float`` is added to the mean loss. ``transform``: an optax transformation
    behind the optimizer, which sees the final updates and whose state is the last part of the optimizer's; its
    ``update`` is told ``total_steps``, and stands still beyond, where other fits under ``vmap`` go on.
    """

    def __call__(self, model: Model, *, penalty: Penalty | None = None, transform: Any = None) -> Fit: ...


ScoreFn = Callable[..., Array]  # logits [S, B, …, C] -> scores [B]
FeatureFn = Callable[[Any, PyTree], Array]  # (state, inputs [B, …]) -> features [B, D]


class Posterior(NamedTuple):
    """What to do with labels, what a draw is, and what one draw predicts.

    Replace a part to keep your own: ``posterior._replace(fit=my_fit)``.

    Attributes:
        fit: ``(key, dataset, labelled bool[N], previous=None) -> state``. The loop passes the state of the round before
            as ``previous``; before the first round that is a state of the same structure filled with zeros (or None).
        sample: ``(key, state, num_samples) -> draws``, a pytree with leading axis ``S``.
        apply: ``(state, draw, inputs [B, …]) -> outputs [B, …, C]``. A draw is one function: every row of ``inputs``
            meets the same one, so nothing depends on the size, the order or the padding of a batch.
        task: what is learnt, of :mod:`baal_jax.training.tasks`, which brings the metrics; None where the targets tell.
        num_draws: how many different draws there are; scores and metrics ask for no more. None for any number.
    """

    fit: Fit
    sample: Callable[[Key, Any, int], PyTree]
    apply: Callable[[Any, PyTree, PyTree], PyTree]
    task: Any = None
    num_draws: int | None = None
    __repr__ = short


class SelectFn(Protocol):
    """``select(key, summary, available, query_size, labelled=None) -> Selection``."""

    def __call__(
        self, key: Key, summary: PyTree, available: Array, query_size: int, labelled: Array | None = None
    ) -> Selection: ...


class Acquisition(NamedTuple):
    """A map over batches and a reduce over the pool.

    Attributes:
        summarise: ``Predictions -> summary``, a pytree with leading axis ``B``, all that is held; None: no prediction.
        select: ``(key, summary, available bool[N], query_size, labelled=None) -> Selection``; sees the whole pool.
        reads_labelled: whether ``select`` reads rows of labelled examples, which a sample (``max_sample``) lacks.
        tasks: names of the :mod:`~baal_jax.training.tasks` whose outputs ``summarise`` reads; None for any.
        keep: how many rows, those with the largest numbers in the summary's first leaf, ``select`` needs; None for all.
        reads_targets: whether ``select`` reads a summary of the target inputs as well, in a :class:`Targeted`.
    """

    summarise: Callable[[Predictions], PyTree] | None
    select: SelectFn
    reads_labelled: bool = False
    tasks: tuple[str, ...] | None = None
    keep: int | None = None
    reads_targets: bool = False
    __repr__ = short

    def of_targets(self, logits: PyTree, features: PyTree) -> PyTree:
        """The summary of the target inputs, from their predictions."""
        if logits is None and features is None:
            raise ValueError("target_inputs is None, but this acquisition reads them: pass them to step, run or study")
        assert self.summarise is not None
        return self.summarise(Predictions(logits, features, logits, features))


class LoopState(NamedTuple):
    """What the next round needs, and nothing else.

    Attributes:
        key: typed key of the whole run; round ``r`` uses ``fold_in(key, r)``.
        pool: which examples are labelled.
        posterior: state of the last fit; zeros before the first.
        step: ``int32[]``, rounds of this loop so far.
        stopping: ``(memory of the criterion, stopped bool[])`` in a run that may stop, else None.
    """

    key: Key
    pool: Any
    posterior: Any
    step: Any = 0
    stopping: Any = None
    __repr__ = short


class StepInfo(NamedTuple):
    """What one would plot.

    Attributes:
        round: ``int32[]``.
        num_labelled: ``int32[]``, labels that this round's fit has seen.
        indices: ``int32[Q]``, what was picked, best first; −1 where the pool ran out.
        scores: ``float32[Q]``, their scores; where the pool has costs, divided by these.
        num_picked: ``int32[]``, how many were picked; 0 once the pool is empty.
        mean_score: ``float32[]``, of what is available and scored, NaN aside; NaN where more than a score is kept.
        num_nan: ``int32[]``, available examples whose summary holds NaN; they rank last.
        metrics: name → value on the test set given to :func:`~baal_jax.run`, else None.
        num_failed_fits: ``int32[]``, networks of this fit that are not finite, or where they began in spite of labels.
        stopped: ``bool[]``, True for a round after the run had stopped: its numbers are NaN, its picks −1.
    """

    round: Array
    num_labelled: Array
    indices: Array
    scores: Array
    num_picked: Array
    mean_score: Array
    num_nan: Array
    metrics: Any = None
    stopped: Any = False
    num_failed_fits: Any = 0
    __repr__ = short


class Round(NamedTuple):
    """A step, taken apart: five functions, each pure and jitted, of which every sequence of rounds is composed.

    Attributes:
        fit: ``(key, dataset, state) -> fitted``: the posterior's fit to what the pool of ``state`` has labelled.
        candidates: ``(key, state) -> (ids, available)``: what is to be scored, None for all, and what can be picked.
        summarise: ``(key, fitted, inputs, target_inputs=None) -> summary``: what the acquisition keeps of the
            predictions on these inputs, a pytree ``[N, …]``; None where nothing is predicted.
        select: ``(key, state, summary, ids, available) -> (selection, info)``: picks, by ids in the whole data set.
        advance: ``(state, fitted, selection) -> state``: the picks are labelled, the next round begins.
    """

    fit: Callable[..., Any]
    candidates: Callable[..., tuple[Array | None, Array]]
    summarise: Callable[..., PyTree]
    select: Callable[..., tuple[Selection, StepInfo]]
    advance: Callable[..., LoopState]
    __repr__ = short
