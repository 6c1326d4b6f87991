"""Array functions in log space and ranking keys against float64 and their written promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax._util import numerics
from tests.fixtures import make_logits
from tests.oracles import heuristics as oracle

INF, NAN = np.inf, np.nan


def test_half_precision_and_integers_are_widened_and_float64_kept():
    with jax.enable_x64(True):
        found = {dtype: numerics.as_float(np.ones(2, dtype)).dtype for dtype in ("f2", "i4", "u1", "?", "f4", "f8")}
    assert found == {"f2": "f4", "i4": "f4", "u1": "f4", "?": "f4", "f4": "f4", "f8": "f8"}


@jax.jit
def everything(logits):
    log_p = numerics.log_probs(logits)
    means = numerics.log_mean_exp(log_p), numerics.log_mean_exp(log_p, axis=1)
    gradient = jax.grad(lambda x: jnp.sum(jnp.exp(numerics.log_mean_exp(x))))(log_p)
    return log_p, numerics.log_probs(log_p), *means, numerics.entropy(log_p), gradient


def test_means_and_entropies_of_probabilities_that_may_be_zero():
    logits = make_logits((4, 5, 3), 0, 30.0, 0.4)
    logits[:, 0, 1] = -INF  # in every draw
    p = oracle.softmax(logits)
    log_p, again, mean, other_mean, entropy, gradient = map(np.asarray, everything(logits))
    np.testing.assert_allclose(again, log_p, atol=1e-6)
    np.testing.assert_allclose(np.exp(mean), p.mean(axis=0), rtol=1e-5, atol=1e-30)
    assert mean[0, 1] == -INF
    np.testing.assert_allclose(other_mean, np.log(p.mean(axis=1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(entropy, oracle.shannon(p), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, np.exp(log_p) / 4, rtol=1e-4, atol=1e-6)
    for num in (3, 41, 47):  # the mean of equal numbers is exact
        row = np.log(np.full((num, 2), 0.3, np.float32))
        np.testing.assert_array_equal(jax.jit(numerics.log_mean_exp)(row), row[0])


def test_ranking_keys_have_tiers():
    scores = np.array([NAN, -INF, -1e37, -0.0, 0.0, 3.0, 1e38, INF, 9.0], np.float32)
    values = np.asarray(jax.jit(numerics.rank_values)(scores, np.arange(9) < 8))
    assert np.isfinite(values[:8]).all()
    assert values[8] == -INF
    assert (np.diff(values[[0, 1, 2, 3, 5, 6, 7]]) > 0).all()
    assert values[3] == values[4]
    assert not np.signbit(values[3:5]).any()  # top_k would rank −0 below 0
    weightless = np.asarray(jax.jit(numerics.weightless_tier, static_argnums=1)(jax.random.key(0), (1000,)))
    assert values[1] < weightless.min() < weightless.max() < values[2]
    assert len(np.unique(weightless)) > 900
    assert jax.jit(numerics.top_indices, static_argnums=1)(values, 9).tolist() == [7, 6, 5, 3, 4, 2, 1, 0, -1]
    taken = jax.jit(numerics.take_or)(scores, np.array([-1, 0, 5, -1], np.int32), 7.0)
    np.testing.assert_array_equal(taken, [7, NAN, 3, 7])


def test_means_and_log_variances_share_the_last_axis():
    outputs = np.arange(24.0).reshape(2, 3, 4)
    mean, log_variance = numerics.gaussian("outputs", outputs, None)(outputs)
    np.testing.assert_array_equal(np.concatenate([mean, log_variance], axis=-1), outputs)
    mean, log_variance = numerics.gaussian("outputs", outputs, 0.5)(outputs[..., :3])
    np.testing.assert_array_equal(mean, outputs[..., :3])
    np.testing.assert_allclose(log_variance, np.full((2, 3, 3), np.log(0.25)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"some has shape \(2, 3, 3\), but means and as many log-variances"):
        numerics.gaussian("some", outputs[..., :3], None)
    with pytest.raises(ValueError, match="some has shape"):
        numerics.gaussian("some", outputs[0], 1.0)


def test_a_condition_of_all_members_stays_a_branch():
    def one(x):
        return jax.lax.cond(numerics.largest(x > 2), jnp.sin, jnp.cos, x)

    for x in (np.float32([0, 1, 2]), np.float32([1, 2, 3])):
        for function, given in ((jax.vmap(one), x), (jax.vmap(jax.vmap(one)), x[None])):
            np.testing.assert_array_equal(jax.jit(function)(given), (jnp.sin if x[2] > 2 else jnp.cos)(given))
            assert " cond[" in str(jax.make_jaxpr(function)(given))
