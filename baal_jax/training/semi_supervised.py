r"""Learning from unlabelled inputs: what two random views of one input should have in common.

A :class:`Consistency` goes into :func:`baal_jax.trainer` as ``unlabelled=…``. Every step then reads a batch of inputs,
whose targets are not read, beside the labelled batch. Two views of them go through the network in training mode,
under different dropout masks and different augmentations, and what differs is added to the loss:

.. math:: \frac{1}{B} \sum_{i=1}^{B} \ell(f(x_i), y_i) + w(t) \, \frac{1}{U} \sum_{j=1}^{U} d(f(u_j), f(\tilde u_j))

The inputs :math:`u` are read from shuffled passes over *all* examples, labelled ones too, as in both papers below.
Refused with a ``ValueError`` are weights and lengths that are negative or not finite, a threshold that is no
probability, classes of which there is one and, in the fit, views that nothing makes differ.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.training.augmentation import Augmentation
from baal_jax.typing import Array, PyTree


class Consistency(NamedTuple):
    """What a trainer does with inputs without targets. Make your own, or change one: ``pi_model(…)._replace(…)``.

    Attributes:
        loss: ``(first [U, …, C], second [U, …, C]) -> [U]`` or ``[U, …]``, of the outputs for the two views. Stop
            gradients here, if one view is to be the teacher of the other.
        weight: ``steps int32[] -> float32[]``, by updates since the weights were initialised; any optax schedule.
        first: ``(key, batch) -> batch`` makes the first view, from a :class:`~baal_jax.Dataset` whose targets are
            None; None is the trainer's ``augment``. This view and the labelled batch make the batch statistics.
        second: the same for the second view, which has a pass of its own and leaves no trace in batch statistics.
    """

    loss: Callable[[PyTree, PyTree], Array]
    weight: Callable[[Array], Any]
    first: Augmentation | None = None
    second: Augmentation | None = None


def probability_difference(first: Array, second: Array) -> Array:
    r"""Mean squared difference of class probabilities, ``[U, …]``.

    .. math:: \frac{1}{C} \sum_c (p_c - \tilde p_c)^2

    Args:
        first: ``[U, …, C]`` logits.
        second: ``[U, …, C]`` logits.

    Example:
        >>> print(probability_difference(jnp.zeros((1, 2)), jnp.array([[50.0, -50.0]])))
        [0.25]
    """
    _require_classes(first, second, "pass distance=semi_supervised.squared_difference for regression")
    return squared_difference(jnp.exp(numerics.log_probs(first)), jnp.exp(numerics.log_probs(second)))


def squared_difference(first: Array, second: Array) -> Array:
    r"""Mean squared difference of outputs, ``[U, …]``, for regression.

    .. math:: \frac{1}{C} \sum_c (f_c - \tilde f_c)^2

    Args:
        first: ``[U, …, C]``.
        second: ``[U, …, C]``.

    Example:
        >>> print(squared_difference(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]])))
        [5.]
    """
    return jnp.mean((numerics.as_float(first) - numerics.as_float(second)) ** 2, axis=-1)


def gaussian_ramp(weight: float, ramp_up: int) -> Callable[[Array], Array]:
    r"""A weight that grows along a Gaussian curve and then stays.

    .. math:: w(t) = w_\max \exp\left(-5 \, (1 - \min(t / T, 1))^2\right)

    Args:
        weight: :math:`w_\max`.
        ramp_up: :math:`T` in steps; with 0 the weight is constant.

    Returns:
        ``steps int32[] -> float32[]``. It starts at 0.7 % of ``weight``.

    Example:
        >>> curve = gaussian_ramp(10.0, ramp_up=100)
        >>> [round(float(curve(jnp.int32(step))), 3) for step in (0, 50, 100, 1000)]
        [0.067, 2.865, 10.0, 10.0]
    """
    if checks.is_concrete(weight):  # one that jax traces may be mapped over or differentiated by
        weight = checks.finite_float("weight", weight, 0.0)
    ramp_up = checks.positive_int("ramp_up", ramp_up, least=0)

    def schedule(steps: Array) -> Array:
        progress = jnp.minimum(jnp.asarray(steps).astype(jnp.float32) / max(ramp_up, 1), 1.0) if ramp_up else 1.0
        return weight * jnp.exp(jnp.asarray(-5.0 * (1.0 - progress) ** 2, jnp.float32))

    return schedule


def pi_model(
    *,
    ramp_up: int,
    weight: float = 100.0,
    augment: Augmentation | None = None,
    distance: Callable[[PyTree, PyTree], Array] = probability_difference,
) -> Consistency:
    r"""The Π-model: two passes over the same inputs, each with its own dropout and augmentation, should agree.

    .. math:: w(t) \, \frac{1}{U} \sum_j \frac{1}{C} \lVert p(u_j) - \tilde p(\tilde u_j) \rVert^2

    Gradients go through both passes, as in the authors' code. The paper's weight :math:`w_\max M / N` is for the mean
    over a batch of which about :math:`M / N` have a label; here the cross-entropy is a mean over labelled examples
    alone, so the same balance is :math:`w_\max` itself. The paper raises the learning rate along the same ramp: pass
    such a schedule to the optimizer.

    Args:
        ramp_up: steps over which the weight grows, see :func:`gaussian_ramp`; the paper takes the first 80 of 300
            epochs. They count from initialisation: a warm start does not begin the ramp again.
        weight: :math:`w_\max`. The paper's 100 is made for its learning rate and length; try 10 as well.
        augment: ``(key, batch) -> batch``, drawn anew for each pass; targets are None in that batch. By default the
            trainer's. Positions must stay in place where outputs have any: this compares them one by one.
        distance: ``(outputs [U, …, C], outputs [U, …, C]) -> [U, …]``; :func:`squared_difference` for regression.

    References:
        Laine and Aila, `Temporal ensembling for semi-supervised learning <https://arxiv.org/abs/1610.02242>`_, 2017.

    Example:
        >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(2)])
        >>> consistency = semi_supervised.pi_model(ramp_up=20, weight=10.0)
        >>> trainer = baal.trainer(
        ...     optax.adam(1e-2), baal.losses.cross_entropy, num_steps=50, batch_size=2, unlabelled=consistency
        ... )
        >>> train = baal.Dataset(jnp.eye(6), jnp.array([0, 1, -1, -1, -1, -1]))
        >>> state = trainer(baal.from_linen(net))(jax.random.key(0), train, train.targets >= 0)
        >>> int(state.steps), bool(jnp.isfinite(state.loss))
        (50, True)
    """
    return Consistency(distance, gaussian_ramp(weight, ramp_up), augment, augment)


def fix_match(
    strong: Augmentation, weak: Augmentation | None = None, *, weight: float = 1.0, threshold: float = 0.95
) -> Consistency:
    r"""FixMatch: where the network is confident under weak augmentation, that is the label under strong augmentation.

    .. math:: w \, \frac{1}{U} \sum_j [\max_c q_{jc} \ge \tau] \, H(\arg\max_c q_{jc}, \, p(\text{strong}(u_j))),
        \qquad q_j = p(\text{weak}(u_j))

    The mean is over all inputs, those below the threshold too. No gradient goes through :math:`q`. Both passes are in
    training mode: dropout, which the paper's network has none of, makes :math:`q` less sure.

    Args:
        strong: ``(key, batch) -> batch``; targets are None in that batch.
        weak: the same for the pseudo-label; by default the trainer's ``augment``.
        weight: :math:`w`, constant, of 7 unlabelled inputs a labelled one in the paper (``unlabelled_batch_size``).
        threshold: :math:`\tau`, a probability.

    Returns:
        A :class:`Consistency`, for outputs ``[U, …, C]`` with a pseudo-label at every position.

    References:
        Sohn et al., `FixMatch: simplifying semi-supervised learning with consistency and confidence
        <https://arxiv.org/abs/2001.07685>`_, 2020.

    Example:
        >>> strong = augmentation.compose(augmentation.shift(1), augmentation.cutout(2))
        >>> consistency = semi_supervised.fix_match(strong, weak=augmentation.shift(1))
        >>> confident, unsure = jnp.array([[5.0, 0.0]]), jnp.array([[0.5, 0.0]])
        >>> print(consistency.loss(confident, unsure), consistency.loss(unsure, confident))
        [0.474077] [0.]
    """
    if not callable(strong):
        raise ValueError(f"strong={strong!r} must be an augmentation, such as augmentation.cutout(4)")
    threshold = checks.finite_float("threshold", threshold, 0.0)
    if threshold > 1.0:
        raise ValueError(f"threshold={threshold} must lie between 0 and 1: it is a probability")

    def loss(first: Array, second: Array) -> Array:
        _require_classes(first, second, "turn sigmoid outputs into two with heuristics.binary_logits")
        log_q = jax.lax.stop_gradient(numerics.log_probs(first))
        labels = jnp.argmax(log_q, axis=-1, keepdims=True)
        surprise = -jnp.take_along_axis(numerics.log_probs(second), labels, axis=-1)[..., 0]
        return jnp.where(jnp.exp(jnp.max(log_q, axis=-1)) >= threshold, surprise, 0.0)

    return Consistency(loss, gaussian_ramp(weight, 0), weak, strong)


def _require_classes(first: Any, second: Any, cure: str) -> None:
    for name, logits in (("first", first), ("second", second)):
        if getattr(logits, "ndim", 0) < 2:
            need = "write a loss of these outputs, with consistency._replace(loss=…)"
            raise ValueError(f"the {name} outputs are no array [U, …, C] but {jax.tree.map(jnp.shape, logits)}: {need}")
        if logits.shape[-1] < 2:
            raise ValueError(f"the {name} outputs have shape {logits.shape} with a single class: {cure}")
