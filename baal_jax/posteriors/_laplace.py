"""Laplace's approximation over the last layer: a trained network, and a Gaussian around its last weights."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, numerics
from baal_jax.features import head
from baal_jax.posteriors import _gauss_newton
from baal_jax.posteriors._gauss_newton import Curvature, Structure, product
from baal_jax.training.tasks import guarded, task_of
from baal_jax.typing import Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState, Variables, of_network, short

_Prior = float | Literal["evidence"] | None


class Moments(NamedTuple):
    """Mean ``[B, C]`` and covariance ``[B, C, C]`` of the outputs, noise of the labels excluded."""

    mean: Array
    covariance: Array


class LaplaceState(NamedTuple):
    """A trained network and the Gaussian around its last layer.

    Attributes:
        trained: what the trainer returned, a :class:`~baal_jax.TrainState`, whose weights are the mean.
        curvature: ``(L [D, K, D, K],)`` with ``L Lᵀ = I + H / τ`` if full, ``(eigenvalues [D, K], left [D, D],
            right [K, K])`` of ``H`` if Kronecker-factored, ``(eigenvalues [D, K],)`` if diagonal.
        prior_precision: ``τ``.
        noise: ``σ`` of regression; 1 for classes, where it has no meaning.
        log_evidence: log marginal likelihood of the labels, in nats, by Laplace's approximation.
    """

    trained: TrainState
    curvature: Curvature
    prior_precision: Array
    noise: Array
    log_evidence: Array
    variables, steps, loss = of_network("trained")
    __repr__ = short

    @property
    def structure(self) -> Structure:
        """What of ``H`` is kept, where it was chosen by size."""
        return "full" if self.curvature[0].ndim == 4 else "kronecker" if len(self.curvature) > 1 else "diagonal"


def laplace(
    model: Model,
    trainer: Trainer,
    *,
    structure: Structure | None = None,
    prior_precision: _Prior = None,
    noise: float | None = None,
    bias: bool = True,
    batch_size: int = 128,
) -> Posterior:
    r"""Last-layer Laplace approximation: a Gaussian around the trained weights of the last layer.

    .. math:: q(W) = \mathcal N\bigl(W_*, (H + \tau I)^{-1}\bigr), \qquad
              H = \sum_{n\ \text{labelled}} h_n h_n^\top \otimes \Lambda_n

    with the features :math:`h` that the last layer reads and the Hessian :math:`\Lambda` of the negative log-likelihood
    in the outputs: :math:`\operatorname{diag}(p) - p p^\top` for integer targets, :math:`I / \sigma^2` for others. The
    outputs of a draw are linear in its deviation, :math:`f(x) + h^\top \Delta W`; what follows the last layer but a
    bias (a temperature, a mean over positions) is linearised. It is that of :func:`baal_jax.features.last_hidden`.

    By default the prior is that under which the trained weights of the last layer are likeliest,
    :math:`\tau = P / \|W_*\|^2` for ``P`` of them. With ``"evidence"`` it maximises the marginal likelihood, as does
    ``noise`` where it is not given,

    .. math:: \log p(y) \approx \log p(y \mid W_*) - \tfrac\tau2 \|W_*\|^2 - \tfrac12 \log\det\bigl(I + H / \tau\bigr),

    where the trained weights count as the mode: a weight decay of ``τ / n`` on the mean loss would make them so. Where
    a classifier is confident of all its labels, :math:`\Lambda` is nearly zero and draws are nearly those of the prior,
    and that of the largest evidence can be far less confident than the network. A regression network that passes
    through all its labels leaves no error to estimate ``noise`` from: give it. Without labels, draws are the prior's.

    With ``K`` outputs and ``D`` features, ``"full"`` keeps :math:`(DK)^2` numbers (a Cholesky factor; where evidence
    chooses, eigenvalues cost ten times as much), ``"kronecker"`` :math:`D^2 + K^2` (eigenbases of the two factors;
    exact in regression), ``"diagonal"`` :math:`DK`.

    Args:
        model: a network with outputs ``[B, C]``: logits, or values (also ``[B]``).
        trainer: from :func:`~baal_jax.trainer`.
        structure: what of ``H`` is kept; None is ``"full"`` up to 4096 weights, else ``"kronecker"``: the state tells.
        prior_precision: ``τ``, of the Gaussian prior of every weight of the last layer, None or ``"evidence"``.
        noise: ``σ``, standard deviation of the labels in regression.
        bias: whether the last layer has a bias to be uncertain about.
        batch_size: how many labelled examples are in work at a time. Bounds memory, changes no number.

    Returns:
        A :class:`~baal_jax.Posterior` whose state is a :class:`LaplaceState` and whose draws are deviations
        ``ΔW float32[D, K]``, with the bias as last row. See also :func:`laplace_moments`.

    Raises:
        ValueError: an option is not one of those above; when it is traced, ``noise`` for integer targets, targets that
            do not fit the outputs, a last layer that is not seen, or ``"full"`` for more than 4096 weights.

    References:
        MacKay, `A practical Bayesian framework for backpropagation networks
        <https://doi.org/10.1162/neco.1992.4.3.448>`_, 1992; Daxberger et al., `Laplace redux: effortless Bayesian deep
        learning <https://arxiv.org/abs/2106.14806>`_, 2021; Immer et al., `Improving predictions of Bayesian neural
        nets via local linearization <https://arxiv.org/abs/2008.08400>`_, 2021, and `Scalable marginal likelihood
        estimation for model selection in deep learning <https://arxiv.org/abs/2104.04975>`_, 2021.

    Example:
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> posterior = baal.posteriors.laplace(baal.from_linen(nn.Dense(2)), trainer, structure="kronecker")
    """
    if structure not in (None, *get_args(Structure)):
        raise ValueError(f"structure={structure!r} must be one of {', '.join(map(repr, get_args(Structure)))}")
    if prior_precision not in (None, "evidence"):
        prior_precision = checks.positive_float("prior_precision", prior_precision)
    noise = checks.noise(noise)
    batch_size = checks.positive_int("batch_size", batch_size)
    train = trainer(model)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: LaplaceState | None = None) -> LaplaceState:
        trained = train(key, dataset, labelled, None if previous is None else previous.trained)

        def batch(data: Dataset, counts: Array) -> tuple[tuple, Array]:
            one = partial(_of_example, model, trained.variables, bias)
            hidden, hessians, numbers, norms = jax.vmap(one)(data.inputs, data.targets, counts)
            return (_gauss_newton.sums(structure, hidden, hessians), *map(jnp.sum, numbers)), norms[0]

        (sums, *rest, num_examples), square_norm = _gauss_newton.sum_over_labelled(batch, dataset, labelled, batch_size)
        curvature = _gauss_newton.decompose(sums, num_examples)
        of_classes = jnp.issubdtype(jnp.asarray(dataset.targets).dtype, jnp.integer)
        return _state(trained, curvature, (square_norm, *rest), of_classes, prior_precision, noise)

    def sample(key: Key, state: LaplaceState, num_samples: int) -> Array:
        kept, keys = state.curvature[0], jax.random.split(key, num_samples)
        noise = jax.vmap(lambda key: jax.random.normal(key, kept.shape[:2], kept.dtype))(keys)
        return _gauss_newton.deviations(state.curvature, state.prior_precision, noise)

    def apply(state: LaplaceState, draw: Array, inputs: PyTree) -> Array:
        def one(example: PyTree) -> Array:
            # What comes before the last layer does not depend on the draw, so vmap over draws computes it once.
            last = head(model, state.variables, example)
            change = last.push(product(last.with_bias_row(draw.shape[0]), draw))
            return last.outputs + change.reshape(last.outputs.shape)

        return jax.vmap(one)(inputs)

    return guarded(jax.jit(fit), sample, apply, task_of(trainer))


def laplace_moments(model: Model) -> Callable[[LaplaceState, PyTree], Moments]:
    r"""Predictions of :func:`laplace` in closed form: the Gaussian that the outputs of its draws have.

    .. math:: f(x) \sim \mathcal N\bigl(f_*(x),\ J (h^\top \otimes I)\, \Sigma\, (h \otimes I) J^\top\bigr)

    Class probabilities are ``posteriors.probit(*moments)``; labels of a regression vary by ``state.noise ** 2`` more.

    Args:
        model: the network that ``laplace`` was given.

    Returns:
        ``(state, inputs [B, …]) -> Moments(mean [B, C], covariance [B, C, C])``; ``"full"`` holds ``B·C·D·K`` numbers.

    Example:
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> net = baal.from_linen(nn.Dense(3))
        >>> train = baal.Dataset(jnp.eye(4), jnp.array([0, 1, 2, 1]))
        >>> state = baal.posteriors.laplace(net, trainer).fit(jax.random.key(0), train, jnp.ones(4, bool))
        >>> moments = baal.posteriors.laplace_moments(net)(state, train.inputs)
        >>> moments.mean.shape, moments.covariance.shape
        ((4, 3), (4, 3, 3))
    """

    def moments(state: LaplaceState, inputs: PyTree) -> Moments:
        covariance = _gauss_newton.covariance(state.curvature, state.prior_precision)

        def one(example: PyTree) -> Moments:
            last = head(model, state.variables, example)
            pushed = jax.vmap(last.push, in_axes=1, out_axes=1)
            half = pushed(covariance(last.with_bias_row(state.curvature[0].shape[0])))
            return Moments(last.outputs.reshape(-1), pushed(half.T))

        return jax.vmap(one)(inputs)

    return jax.jit(moments)


@jax.jit
def probit(mean: Array, covariance: Array) -> Array:
    r"""Class probabilities under a Gaussian over logits, without drawing from it.

    .. math:: \mathbb E\,[\operatorname{softmax}(f)]_c \propto
              \Bigl( \sum_k \exp\bigl(-\kappa_{ck} (\bar f_c - \bar f_k)\bigr) \Bigr)^{-1}, \qquad
              \kappa_{ck} = 1 / \sqrt{1 + \tfrac\pi8 \operatorname{Var}(f_c - f_k)}

    With two classes this is MacKay's formula, and more are made of their pairs, which is rougher the more there are:
    draw where that matters. As in a softmax only differences of logits count.

    Args:
        mean: ``[N, …, C]`` mean logits.
        covariance: ``[N, …, C, C]``, or ``[N, …, C]`` variances of logits that are independent of one another.

    Returns:
        ``[N, …, C]`` log-probabilities; as one draw, ``[None]``, they go where draws do.

    References:
        MacKay, `The evidence framework applied to classification networks
        <https://doi.org/10.1162/neco.1992.4.5.720>`_, 1992; Lu, Ie and Sha, `Mean-field approximation to
        Gaussian-softmax integral <https://arxiv.org/abs/2006.07584>`_, 2020.

    Example:
        >>> log_probs = baal.posteriors.probit(jnp.array([[1.0, -1.0]]), jnp.array([[12.0, 12.0]]) / jnp.pi)
        >>> bool(jnp.allclose(jnp.exp(log_probs)[0, 0], jax.nn.sigmoid(2.0 / 2.0)))      # κ = ½
        True
    """
    mean, covariance = numerics.as_float(mean), numerics.as_float(covariance)
    num_classes = mean.shape[-1]
    if covariance.shape == mean.shape:
        covariance = jnp.vectorize(jnp.diag, signature="(c)->(c,c)")(covariance)
    if covariance.shape != (*mean.shape, num_classes):
        raise ValueError(f"covariance has shape {covariance.shape}, but {(*mean.shape, num_classes)} is needed")
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    of_gap = jnp.maximum(variance[..., :, None] + variance[..., None, :] - 2.0 * covariance, 0.0)
    gaps = (mean[..., :, None] - mean[..., None, :]) * jax.lax.rsqrt(1.0 + (jnp.pi / 8.0) * of_gap)
    return numerics.log_probs(-jax.nn.logsumexp(-gaps, axis=-1))


def _of_example(model: Model, variables: Variables, bias: bool, example: PyTree, target: Array, counts: Array) -> tuple:
    """``h [D]``, ``Λ [K, K]``, what adds up to the evidence (error, labels, examples), and the norm of the weights."""
    last = head(model, variables, example)
    error, hessian, num_labels = _likelihood(last.outputs.reshape(-1), target, counts)
    used = num_labels > 0
    hidden = jnp.where(used, last.with_bias_row(last.hidden.shape[0] + bias), 0.0)
    norm = last.weight_norm + (jnp.sum(last.offset**2) if bias else 0.0)
    return hidden, last.pull(last.pull(hessian).T), (error, num_labels, used.astype(num_labels.dtype)), norm


def _likelihood(outputs: Array, target: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Error (minus log-likelihood, or squares), its Hessian ``[C, C]`` and how many numbers are known."""
    if jnp.issubdtype(target.dtype, jnp.integer):
        if target.shape or outputs.shape[0] < 2:
            cure = "pass one class an example, and the two logits of heuristics.binary_logits for a single output"
            given = f"integer targets of shape {target.shape} an example do not fit {outputs.size} outputs"
            raise ValueError(f"{given}: {cure}")
        known = counts & (target >= 0)
        log_p = numerics.log_probs(outputs)
        p = jnp.exp(log_p)
        hessian = jnp.where(known, jnp.diag(p) - jnp.outer(p, p), 0.0)
        return jnp.where(known, -log_p[jnp.maximum(target, 0)], 0.0), hessian, known.astype(p.dtype)
    target = numerics.as_float(target).reshape(-1)
    if target.shape != outputs.shape:
        raise ValueError(f"{target.size} target values an example do not fit {outputs.size} outputs: make one for each")
    known = counts & ~jnp.isnan(target)
    error = jnp.where(known, target, 0.0) - jnp.where(known, outputs, 0.0)
    return jnp.sum(error**2), jnp.diag(known.astype(outputs.dtype)), jnp.sum(known.astype(outputs.dtype))


def _state(
    trained: TrainState, curvature: Curvature, fit: tuple, of_classes: bool, prior: _Prior, noise: float | None
) -> LaplaceState:
    """Chooses what is not given, scales the curvature, which is that of unit noise, and completes the state."""
    if of_classes and noise is not None:
        raise ValueError(f"noise={noise} belongs to regression, but the targets are integer classes: leave it out")
    square_norm, error, num_labels = fit
    given = _gauss_newton.likeliest_precision(square_norm, curvature) if prior is None else prior
    tau = None if isinstance(given, str) else given
    beta = 1.0 if of_classes else None if noise is None else noise**-2
    if tau is None or beta is None:
        tau, beta = _gauss_newton.maximise(curvature, fit, tau, beta)
    tau, beta = (jnp.asarray(value, square_norm.dtype) for value in (tau, beta))
    curvature, log_det = _gauss_newton.with_prior(curvature, tau, beta)
    misfit = error if of_classes else 0.5 * (beta * error - num_labels * jnp.log(beta / (2 * jnp.pi)))
    return LaplaceState(trained, curvature, tau, jax.lax.rsqrt(beta), -misfit - 0.5 * (tau * square_norm + log_det))
