"""The joint log-likelihood of groups against products in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import metrics
from tests.fixtures import close
from tests.oracles import metrics as oracle

DRAWS, EXAMPLES = 7, 12
GROUPS = np.array([[0, 1, 2, 3], [4, 4, 5, 5], [11, -1, 6, -1], [-1, -1, -1, -1]], np.int32)
AT_FOUR = np.arange(EXAMPLES) == 4
joint_log_likelihood = jax.jit(metrics.joint_log_likelihood, static_argnames="noise")


def expected(log_p):
    """From ``[S, N]``, group by group, draw by draw."""
    groups = [[np.exp(sum(draw[n] for n in group if n >= 0)) for draw in log_p] for group in GROUPS]
    return np.log(np.mean(groups, axis=1))


def test_joint_likelihood_of_classes():
    rng = np.random.default_rng(0)
    logits = (2 * rng.normal(size=(DRAWS, EXAMPLES, 2, 3))).astype(np.float32)
    classes = rng.integers(0, 3, (EXAMPLES, 2)).astype(np.int32)
    log_p = logits - np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
    chosen = np.broadcast_to(classes[..., None], (DRAWS, EXAMPLES, 2, 1))
    log_p = np.take_along_axis(log_p, chosen, axis=-1)[..., 0].sum(-1)
    close(joint_log_likelihood(logits, classes, GROUPS), expected(log_p), 2e-5)
    unknown = np.where(AT_FOUR[:, None], -1, classes).astype(np.int32)
    close(joint_log_likelihood(logits, unknown, GROUPS), expected(np.where(AT_FOUR, 0, log_p)), 2e-5)
    # Of single labels it is that of the model average.
    found = joint_log_likelihood(logits[:, :, 0], classes[:, 0], np.arange(EXAMPLES, dtype=np.int32)[:, None])
    close(-np.mean(found), oracle.nll(oracle.model_average(logits[:, :, 0]), classes[:, 0]))
    # It does not underflow.
    logits = np.stack([np.zeros((600, 2)), np.repeat([[0.0, 1.0]], 600, axis=0)]).astype(np.float32)
    found = joint_log_likelihood(logits, np.zeros(600, np.int32), np.arange(600, dtype=np.int32)[None])
    close(found / np.float32(600), np.array([np.log(0.5) - np.log(2) / 600]), 2e-5)


@pytest.mark.parametrize("noise", [None, 0.6])
def test_joint_likelihood_of_values(noise):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(DRAWS, EXAMPLES, 2 if noise is None else 1)).astype(np.float32)
    values = rng.normal(size=EXAMPLES).astype(np.float32)
    variance = np.exp(np.float64(outputs[..., 1])) if noise is None else noise**2
    log_p = -0.5 * (np.log(2 * np.pi * variance) + (values - np.float64(outputs[..., 0])) ** 2 / variance)
    close(joint_log_likelihood(outputs, values, GROUPS, noise=noise), expected(log_p), 2e-5)

    def total(outputs):
        found = metrics.joint_log_likelihood(
            outputs, np.where(AT_FOUR, np.float32(np.nan), values), GROUPS, noise=noise
        )
        return found.sum(), found

    gradient, found = jax.device_get(jax.jit(jax.grad(total, has_aux=True))(outputs))
    close(found, expected(np.where(AT_FOUR, 0, log_p)), 2e-5)
    assert np.isfinite(gradient).all()
    assert gradient[:, :4, 0].all()
    assert not gradient[:, 4].any()


def test_several_values_an_example_add_up_in_single_precision():
    rng = np.random.default_rng(1)
    means, values = (rng.normal(size=size).astype(jnp.bfloat16) for size in ((DRAWS, EXAMPLES, 2), (EXAMPLES, 2)))
    log_p = -0.5 * (np.log(2 * np.pi * 0.36) + (np.float64(values) - np.float64(means)) ** 2 / 0.36)
    close(joint_log_likelihood(means, values, GROUPS, noise=0.6), expected(log_p.sum(-1)), 2e-5)


def test_what_does_not_fit_is_refused():
    logits, classes = np.zeros((DRAWS, EXAMPLES, 2, 3), np.float32), np.zeros((EXAMPLES, 2), np.int32)
    for arguments, options, message in (
        ((logits, classes, GROUPS[0]), {}, r"groups are int32\(4,\)"),
        ((logits, classes, GROUPS.astype(np.float32)), {}, "integer ids"),
        ((logits, classes[:, 0], GROUPS), {}, r"targets have shape \(12,\)"),
        ((logits, classes, GROUPS), {"noise": 1.0}, r"noise=1\.0 belongs to regression"),
        ((logits[..., :1], classes, GROUPS), {}, "single class"),
        ((logits, np.zeros((12, 2, 3), np.float32), GROUPS), {"noise": -1.0}, r"noise=-1\.0 must be"),
        ((logits[..., :2], np.zeros((12, 3), np.float32), GROUPS), {}, "is needed for these outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.joint_log_likelihood(*arguments, **options)
