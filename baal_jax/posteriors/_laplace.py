"""Laplace's approximation over the last layer: a trained network, and a Gaussian around its last weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.features import head, inputs_of
from baal_jax.posteriors import _laplace_curvature, _laplace_evidence
from baal_jax.posteriors._laplace_curvature import Curvature, Structure
from baal_jax.training import TrainState
from baal_jax.typing import Array, Dataset, Key, Model, Posterior, PyTree, Trainer, Variables


class LaplaceState(NamedTuple):
    """A trained network and the Gaussian around its last layer.

    Attributes:
        trained: what the trainer returned, a :class:`~baal_jax.TrainState`.
        curvature: of the log-likelihood of the labelled examples.
        prior_precision: ``τ``.
        noise: ``σ`` of regression; 1 for classes, where it has no meaning.
        log_evidence: log marginal likelihood of the labels, in nats, by Laplace's approximation.
    """

    trained: TrainState
    curvature: Curvature
    prior_precision: Array
    noise: Array
    log_evidence: Array

    @property
    def variables(self) -> Variables:
        """Of the trained network, the mean of the posterior."""
        return self.trained.variables

    @property
    def steps(self) -> Array:
        """Updates of the trained network."""
        return self.trained.steps

    @property
    def loss(self) -> Array:
        """Training loss of the trained network."""
        return self.trained.loss


class Moments(NamedTuple):
    """Mean ``[B, C]`` and covariance ``[B, C, C]`` of the outputs, noise of the labels excluded."""

    mean: Array
    covariance: Array


def laplace(
    model: Model,
    trainer: Trainer,
    *,
    structure: Structure = "full",
    prior_precision: float | Literal["evidence"] | None = None,
    noise: float | None = None,
    bias: bool = True,
    batch_size: int = 128,
) -> Posterior:
    r"""Last-layer Laplace approximation: a Gaussian around the trained weights of the last layer.

    .. math:: q(W) = \mathcal N\bigl(W_*, (H + \tau I)^{-1}\bigr), \qquad
              H = \sum_{n\ \text{labelled}} h_n h_n^\top \otimes \Lambda_n

    with the features :math:`h` that the last layer reads and the Hessian :math:`\Lambda` of the negative log-likelihood
    in the outputs: :math:`\operatorname{diag}(p) - p p^\top` for integer targets, :math:`I / \sigma^2` for others. The
    outputs of a draw are linear in its deviation, :math:`f(x) + h^\top \Delta W`, which is exact where nothing but a
    bias follows the last layer; what else does (a temperature, a mean over positions, a squashing) is linearised. Only
    the last layer differs between draws, so the network before it is computed once for all of them. The layer is found
    in the traced program, as by :func:`baal_jax.features.last_hidden`.

    By default the prior is that under which the trained weights of the last layer are likeliest,
    :math:`\tau = P / \|W_*\|^2` for ``P`` of them: the scale that initialisation and training gave them. With
    ``"evidence"`` it maximises the marginal likelihood, as ``noise`` does where it is not given,

    .. math:: \log p(y) \approx \log p(y \mid W_*) - \tfrac\tau2 \|W_*\|^2
              - \tfrac12 \log\det\bigl(I + H / \tau\bigr),

    in closed form but for one bisection. The trained weights count as its mode: a weight decay of ``τ / n`` on the mean
    loss would make them so. Where a classifier is sure of all its labels, :math:`\Lambda` is nearly zero and draws are
    nearly those of the prior, and that of the largest evidence can be far less sure than the network itself. A
    regression network that passes through all its labels leaves no error to
    estimate ``noise`` from: give it then. With nothing labelled, draws come from the prior.

    The curvature costs one pass over the labelled examples. With ``K`` outputs and ``D`` features, ``"full"`` keeps
    :math:`(DK)^2` numbers, ``"kronecker"`` :math:`D^2 + K^2` (eigenbases of the two factors, the prior added in them
    without approximation; exact in regression), ``"diagonal"`` :math:`DK`.

    Args:
        model: a network with outputs ``[B, C]``: logits, or values (also ``[B]``).
        trainer: from :func:`~baal_jax.trainer`.
        structure: what of ``H`` is kept.
        prior_precision: ``τ``, of the Gaussian prior of every weight of the last layer, None or ``"evidence"``.
        noise: ``σ``, standard deviation of the labels in regression.
        bias: whether the last layer has a bias to be uncertain about.
        batch_size: how many labelled examples are in work at a time. Bounds memory, changes no number.

    Returns:
        A :class:`~baal_jax.Posterior` whose state is a :class:`LaplaceState` and whose draws are deviations
        ``ΔW float32[D, K]``, with the bias as last row. For its predictions in closed form see
        :func:`laplace_moments`.

    Raises:
        ValueError: an option is not one of those above; and, when it is traced, ``noise`` for integer targets, targets
            that do not fit the outputs, a last layer that is not seen, or a full covariance of more than 4096 weights.

    References:
        MacKay, `A practical Bayesian framework for backpropagation networks
        <https://doi.org/10.1162/neco.1992.4.3.448>`_, 1992; Daxberger et al., `Laplace redux: effortless Bayesian deep
        learning <https://arxiv.org/abs/2106.14806>`_, 2021; Immer et al., `Improving predictions of Bayesian neural
        nets via local linearization <https://arxiv.org/abs/2008.08400>`_, 2021, and `Scalable marginal likelihood
        estimation for model selection in deep learning <https://arxiv.org/abs/2104.04975>`_, 2021.

    Example:
        >>> import baal_jax as baal, flax.linen as nn, optax
        >>> from baal_jax import posteriors
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> net = baal.from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]))
        >>> posterior = posteriors.laplace(net, trainer, structure="kronecker")
        >>> train = baal.Dataset(jnp.eye(4), jnp.array([0, 1, 0, 1]))
        >>> state = posterior.fit(jax.random.key(0), train, jnp.ones(4, bool))
        >>> baal.predict(jax.random.key(1), posterior, state, train.inputs, num_samples=5).shape
        (5, 4, 2)
    """
    if structure not in get_args(Structure):
        raise ValueError(f"structure={structure!r} must be one of {', '.join(map(repr, get_args(Structure)))}")
    if prior_precision != "evidence":
        prior_precision = _positive("prior_precision", prior_precision)
    noise = _positive("noise", noise)
    batch_size = checks.positive_int("batch_size", batch_size)
    train = trainer(model)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: LaplaceState | None = None) -> LaplaceState:
        trained = train(key, dataset, labelled, None if previous is None else previous.trained)
        sums = _sum_over_labelled(model, trained.variables, dataset, labelled, structure, bias, batch_size)
        curvature = _laplace_curvature.decompose(structure, sums.factors, sums.num_examples)
        of_classes = jnp.issubdtype(jnp.asarray(dataset.targets).dtype, jnp.integer)
        return _state(trained, curvature, sums, of_classes, prior_precision, noise)

    def sample(key: Key, state: LaplaceState, num_samples: int) -> Array:
        return jax.vmap(lambda key: _deviation(key, state))(jax.random.split(key, num_samples))

    def apply(state: LaplaceState, draw: Array, inputs: PyTree) -> Array:
        def one(example: PyTree) -> Array:
            found = head(model, state.variables, example)
            change = jnp.matmul(inputs_of(found.hidden, draw.shape[0]), draw, precision="highest")
            return found.outputs + found.push(change).reshape(found.outputs.shape)

        return jax.vmap(one)(inputs)

    return Posterior(jax.jit(fit), sample, apply)


def laplace_moments(model: Model) -> Callable[[LaplaceState, PyTree], Moments]:
    r"""Predictions of :func:`laplace` in closed form: the Gaussian that the outputs of its draws have.

    .. math:: f(x) \sim \mathcal N\bigl(f_*(x),\ J (h^\top \otimes I)\, \Sigma\, (h \otimes I) J^\top\bigr)

    Class probabilities from it: ``baal_jax.posteriors.probit(*moments)``. Labels of a regression have the variance
    ``state.noise ** 2`` more.

    Args:
        model: the network that ``laplace`` was given.

    Returns:
        ``(state, inputs [B, …]) -> Moments(mean [B, C], covariance [B, C, C])``, compiled. The features of the pool
        are never multiplied out with the outputs, but a full covariance holds ``B · C · D K`` numbers.

    Example:
        >>> import baal_jax as baal, flax.linen as nn, optax
        >>> from baal_jax import posteriors
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> net = baal.from_linen(nn.Dense(3))
        >>> train = baal.Dataset(jnp.eye(4), jnp.array([0, 1, 2, 1]))
        >>> state = posteriors.laplace(net, trainer).fit(jax.random.key(0), train, jnp.ones(4, bool))
        >>> moments = posteriors.laplace_moments(net)(state, train.inputs)
        >>> moments.mean.shape, moments.covariance.shape
        ((4, 3), (4, 3, 3))
    """

    def moments(state: LaplaceState, inputs: PyTree) -> Moments:
        variances = 1.0 / (state.curvature.eigenvalues + state.prior_precision)

        def one(example: PyTree) -> Moments:
            found = head(model, state.variables, example)
            hidden = inputs_of(found.hidden, variances.shape[0])
            pushed = jax.vmap(found.push, in_axes=1, out_axes=1)
            half = pushed(_laplace_curvature.covariance(state.curvature.basis, variances, hidden))
            return Moments(found.outputs.reshape(-1), pushed(half.T))

        return jax.vmap(one)(inputs)

    return jax.jit(moments)


class _Sums(NamedTuple):
    """What the labelled examples add up to, and the norm of the last layer, which belongs to none of them."""

    factors: tuple[Array, ...]
    error: Array
    num_labels: Array
    num_examples: Array
    square_norm: Array


def _sum_over_labelled(
    model: Model,
    variables: Variables,
    dataset: Dataset,
    labelled: Array,
    structure: Structure,
    bias: bool,
    batch_size: int,
) -> _Sums:
    """Only labelled examples are run: as many batches as they fill, of one shape."""
    ids = jnp.flatnonzero(labelled, size=labelled.shape[0], fill_value=0).astype(jnp.int32)
    number = jnp.sum(labelled, dtype=jnp.int32)
    batch_size = min(batch_size, labelled.shape[0])

    def one(example: PyTree, target: Array, counts: Array) -> tuple[Array, Array, _Sums]:
        found = head(model, variables, example)
        error, hessian, count = _likelihood(found.outputs.reshape(-1), target, counts)
        used = count > 0
        hidden = inputs_of(found.hidden, found.hidden.shape[0] + bias)
        norm = found.weight_norm + (jnp.sum(found.offset**2) if bias else 0.0)
        sums = _Sums((), error, count, used.astype(count.dtype), norm)
        return jnp.where(used, hidden, 0.0), found.pull(found.pull(hessian).T), sums

    def batch(index: Array) -> _Sums:
        rows = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        chosen = ids[jnp.minimum(rows, jnp.maximum(number - 1, 0))]
        inputs, targets = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], tuple(dataset))
        hidden, hessians, sums = jax.vmap(one)(inputs, targets, rows < number)
        norm = sums.square_norm[0]
        return jax.tree.map(jnp.sum, sums)._replace(
            factors=_laplace_curvature.factors(structure, hidden, hessians), square_norm=norm
        )

    def add(index: int, total: _Sums) -> _Sums:
        new = batch(jnp.asarray(index, jnp.int32))
        return jax.tree.map(jnp.add, total, new)._replace(square_norm=new.square_norm)

    shapes = jax.eval_shape(batch, jnp.zeros((), jnp.int32))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # At least one batch, for the norm of the weights, which is that of any example.
    return jax.lax.fori_loop(0, jnp.maximum((number + batch_size - 1) // batch_size, 1), add, start)


def _likelihood(outputs: Array, target: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Error (minus log-likelihood, or squares), its Hessian ``[C, C]`` and how many numbers are known."""
    if jnp.issubdtype(target.dtype, jnp.integer):
        if target.shape or outputs.shape[0] < 2:
            raise ValueError(
                f"integer targets of shape {target.shape} an example do not fit {outputs.shape[0]} outputs: pass one "
                "class an example, and the two logits of heuristics.binary_logits for a single one"
            )
        known = counts & (target >= 0)
        log_p = numerics.log_probs(outputs)
        p = jnp.exp(log_p)
        hessian = jnp.where(known, jnp.diag(p) - jnp.outer(p, p), 0.0)
        return jnp.where(known, -log_p[jnp.maximum(target, 0)], 0.0), hessian, known.astype(p.dtype)
    target = numerics.as_float(target).reshape(-1)
    if target.shape != outputs.shape:
        raise ValueError(
            f"{target.shape[0]} target values an example do not fit {outputs.shape[0]} outputs: a Gaussian of constant "
            "noise needs one output for each"
        )
    known = counts & ~jnp.isnan(target)
    error = jnp.where(known, target, 0.0) - jnp.where(known, outputs, 0.0)
    return jnp.sum(error**2), jnp.diag(known.astype(outputs.dtype)), jnp.sum(known.astype(outputs.dtype))


def _state(
    trained: TrainState,
    curvature: Curvature,
    sums: _Sums,
    of_classes: bool,
    prior_precision: float | Literal["evidence"] | None,
    noise: float | None,
) -> LaplaceState:
    """Scales the curvature, which is that of unit noise, and completes the state."""
    if of_classes and noise is not None:
        raise ValueError(f"noise={noise} belongs to regression, but the targets are integer classes: leave it out")
    noise_precision = 1.0 if of_classes else noise if noise is None else noise**-2
    evidence = _laplace_evidence.Evidence(curvature.eigenvalues, sums.square_norm, sums.error, sums.num_labels)
    precision: Array | float | None = None
    if prior_precision != "evidence":
        precision = _laplace_evidence.likeliest_precision(evidence) if prior_precision is None else prior_precision
    tau, beta = _laplace_evidence.maximise(evidence, precision, noise_precision)
    curvature = curvature._replace(eigenvalues=beta * curvature.eigenvalues)
    misfit = sums.error if of_classes else 0.5 * (beta * sums.error - sums.num_labels * jnp.log(beta / (2 * jnp.pi)))
    log_evidence = -misfit - _laplace_evidence.complexity(curvature.eigenvalues, tau, sums.square_norm)
    return LaplaceState(trained, curvature, tau, jax.lax.rsqrt(beta), log_evidence)


def _deviation(key: Key, state: LaplaceState) -> Array:
    values, basis = state.curvature
    white = jax.random.normal(key, values.shape, values.dtype)
    return _laplace_curvature.multiply(basis, jax.lax.rsqrt(values + state.prior_precision), white)


def _positive(name: str, value: float | None) -> float | None:
    if value is not None and checks.finite_float(name, value, 0.0) == 0.0:
        cure = "None or 'evidence'" if name == "prior_precision" else "None to choose it by the marginal likelihood"
        raise ValueError(f"{name}={value!r} must be positive, or {cure}")
    return value
