"""Metrics at the ends of bins, of ties, of certain and of missing predictions, as they were when looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import heuristics, metrics, posteriors
from tests.contracts.test_metrics import METRICS
from tests.fixtures import make_logits
from tests.study import golden

RNG = np.random.default_rng(0)
NAN = np.nan


def of(name, probs, targets, **options):
    """A metric of probabilities."""
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array(probs, np.float32))
    metric = getattr(metrics, name) if isinstance(name, str) else name
    return metric(log_probs, np.array(targets, np.int32), **options)


def digits_lost(log_probs, targets):
    """Where a sum of as many confidences in float32 would lose the difference of accuracy and confidence."""
    return np.round(1e5 * (np.array(metrics.reliability(log_probs, targets, num_bins=2)[1:]) - 0.7))


NAMES = "ece ece_per_class classwise_ece adaptive_ece nll brier accuracy auroc average_precision"
EDGES = [[0.5, 0.5], [1.0, 0.0], [0.25, 0.75], [0.3, 0.7]]
TIES = [[0.25] * 4, [0.1, 0.4, 0.1, 0.4]]
THIRTY = 0.01 + 0.7 * np.eye(30)[[0, 9, 20, 29]]  # 29 · 30 + 29 is no number of eight bits


def log_softmax(logits):
    return np.float32(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


SURE = [[1.0, 0.0], [0.5, 0.5]]
ENTROPY = metrics.classification(diagnostics=True).compute
LOGITS, UNKNOWN = log_softmax(make_logits((24, 4)).round(0)), RNG.integers(-1, 4, 24).astype(np.int32)
TWO = np.where(UNKNOWN > 1, 1, UNKNOWN)
MANY = (np.arange(200_000) % 10 >= 7).astype(np.int32)
# An unknown score equals the last known one, whose run it must not join.
SCORES = log_softmax(np.float32([[1, 0], [-np.inf, 0], [-np.inf, 0], [0.5, 0]] * 3)), np.int32([1, 0, -1, 0] * 3)
# Class 0 is never predicted, class 1 never a target, class 2 neither.
ABSENT = make_logits((40, 4)), np.random.default_rng(0).choice([-1, 0, 3], 40).astype(np.int32)
ABSENT[0][:, [0, 2]] = -20
ABSENT[0][:] = log_softmax(ABSENT[0])
CLASSES = {
    "averages": lambda: [
        getattr(metrics, name)(*ABSENT, average=average, zero_division=zero)
        for name in ("precision", "recall", "f1")  # fault 28: Baal's precision is the recall
        for average in ("macro", "micro", "weighted", None)
        for zero in (0.0, 1.0, NAN)
    ],
    "averages of nothing": lambda: metrics.precision(ABSENT[0], np.full(40, -1), average="micro"),
    "rankings": lambda: [metrics.auroc(*SCORES), metrics.average_precision(*SCORES)],
    # Baal's own test; the class without examples is NaN where Baal reports 0.
    "Baal": lambda: [of(name, [[0.4, 0.5, 0.1], [0.1, 0.8, 0.1]], [2, 1], num_bins=3) for name in NAMES.split()[:2]],
    # Case 52: Baal gives 1e-4 and .6875.
    "perfect": lambda: [of(name, np.eye(3)[[0, 2, 1, 2]], [0, 2, 1, 2]) for name in NAMES.split()],
    # In a bin of its own the two gaps of a confidence of 1 would not cancel, and dropped it would leave 0.025.
    "ends of bins": lambda: of("ece", [[1.0, 0.0], [0.95, 0.05]], [1, 0], num_bins=10),
    "diagram": lambda: of("reliability", EDGES, [0] * 4, num_bins=4),
    "entropies": lambda: of(ENTROPY, [[0.25] * 4, [1.0, 0.0, 0.0, 0.0]], [0, 0])["entropy_histogram"],
    "few or many bins of equal mass": lambda: [metrics.adaptive_ece(LOGITS, UNKNOWN, num_bins=n) for n in (1, 100)],
    "many in a bin": lambda: of(digits_lost, np.broadcast_to([0.7, 0.3], (200_000, 2)), MANY),
    "impossible": lambda: [of("nll", SURE, targets) for targets in ([1, 0], [0, 0], [-1, 0])],
    "ties": lambda: [*(of("accuracy", TIES, [1, 3], k=k) for k in (1, 2)), of("confusion_matrix", TIES, [1, 3])],
    "small integers": lambda: [
        metric(np.log(np.float32(THIRTY)), np.array([0, 9, 20, 29], np.uint8))
        for metric in (metrics.confusion_matrix, metrics.ece_per_class)
    ],
    "no examples": lambda: METRICS["classification"][1].compute(np.zeros((0, 3), np.float32), np.zeros(0, np.int32)),
    "absent or alone": lambda: [
        metric(LOGITS, targets, average=average)
        for metric in (metrics.auroc, metrics.average_precision)
        for targets in (TWO, np.where(TWO >= 0, 1, -1))
        for average in (None, "macro")
    ],
}

DRAWS, TARGETS = RNG.normal(size=(6, 20)).astype(np.float32), RNG.normal(size=20).astype(np.float32)
TARGETS[::5] = NAN
LOWER, UPPER = np.float32([[NAN, 0.0, 0.0], [1.0, 1.0, 1.0]])
BOUNDS = ((LOWER, UPPER, [0.5, 0, 1]), (LOWER, UPPER, [NAN, 0, 1]), (UPPER, LOWER[::-1], [0.5] * 3))
OUTPUTS = RNG.normal(size=(50, 4, 6)).astype(np.float32)
MOMENTS = OUTPUTS.mean(0), OUTPUTS.var(0)


def certain():
    """Values and gradients where targets are unknown and the variance is 0."""
    targets, zeros = np.array([1.0, NAN, -3.0], np.float32), np.zeros(3, np.float32)

    def total(mean, variance):
        draws = mean[None] + np.array([[-0.5], [0.5]], np.float32)
        values = [metric(mean, targets) for metric in (metrics.rmse, metrics.mae)]
        values += [metrics.gaussian_crps(mean, variance, targets), metrics.crps(draws, targets)]
        values.append(metrics.pinball(mean[None], targets, levels=(0.75,))[0])
        return sum(values), values

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(zeros, zeros)


def probit(num_classes):
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=(5, num_classes)), rng.normal(size=(5, num_classes, num_classes))
    mean, covariance = np.float32(mean), np.float32(root @ root.swapaxes(1, 2))
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    alike = [
        posteriors.probit(mean, part)
        for part in (variance, variance[..., None] * np.eye(num_classes, dtype=np.float32))
    ]
    np.testing.assert_allclose(*alike, rtol=1e-4, atol=1e-6)
    shared = posteriors.probit(mean, covariance + 5)
    np.testing.assert_allclose(shared, posteriors.probit(mean, covariance), rtol=1e-3, atol=1e-4)
    return [alike[0], shared]


VALUES = {
    "CRPS far from zero": lambda: [
        metrics.crps(DRAWS[:n] + 2**12, TARGETS + 2**12, fair=fair) for n in (1, 2, 6) for fair in (False, True)
    ],
    "certain predictions": certain,
    "bounds": lambda: [metrics.coverage(low, high, np.float32(targets)) for low, high, targets in BOUNDS],
    "uncertainty": lambda: heuristics.gaussian_uncertainty(OUTPUTS),
    "uncertainty of noise": lambda: heuristics.gaussian_uncertainty(OUTPUTS, noise=0.5),
    "probit": lambda: [probit(2), probit(4)],
    "noise": lambda: metrics.regression(noise_variance=0.3).compute(MOMENTS, OUTPUTS[0]),
    "draws that agree": lambda: metrics.regression().compute((OUTPUTS[0], np.zeros((4, 6), np.float32)), OUTPUTS[0]),
}

GROUPS = np.array([[0, 1, 2, 3], [4, 4, 5, 5], [11, -1, 6, -1], [-1, -1, -1, -1]], np.int32)
JOINT, JOINT_CLASSES = RNG.normal(size=(7, 12, 2, 3)).astype(np.float32), RNG.integers(-1, 3, (12, 2)).astype(np.int32)
JOINT_VALUES = np.where(np.arange(12) == 4, NAN, RNG.normal(size=12)).astype(np.float32)
FAR = np.stack([np.zeros((600, 2)), np.repeat([[0.0, 1.0]], 600, axis=0)]).astype(np.float32)


def of_values(noise):
    """The joint likelihood and its gradient, where a value is unknown."""

    def total(outputs):
        found = metrics.joint_log_likelihood(outputs, JOINT_VALUES, GROUPS, noise=noise)
        return found.sum(), found

    return jax.jit(jax.grad(total, has_aux=True))(JOINT[:, :, 0, : 2 if noise is None else 1])


GROUPED = {
    "groups of labels": lambda: metrics.joint_log_likelihood(JOINT, JOINT_CLASSES, GROUPS),
    "groups of single labels": lambda: metrics.joint_log_likelihood(JOINT[:, :, 0], JOINT_CLASSES[:, 0], GROUPS),
    "groups that underflow": lambda: metrics.joint_log_likelihood(FAR, np.zeros(600, int), np.arange(600)[None]),
    "groups of values": lambda: [of_values(noise) for noise in (None, 0.6)],
    "groups of several values": lambda: metrics.joint_log_likelihood(
        JOINT[..., 0].astype(jnp.bfloat16), JOINT[0, ..., 1].astype(jnp.bfloat16), GROUPS, noise=0.6
    ),
}
CASES = {**CLASSES, **VALUES, **GROUPED}


@pytest.mark.parametrize("name", CASES)
def test_it_is_as_it_was(name):
    golden.is_as_it_was("metrics.json", name, jax.device_get(CASES[name]()))


if __name__ == "__main__":
    golden.write("metrics.json", CASES)
