"""EPIG against the explicit double loop, Baal's golden numbers and the inequalities of information."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baal_jax import heuristics
from tests.oracles import baal
from tests.oracles import heuristics as oracle

# All is case 18.
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
gradients = jax.jit(jax.grad(lambda logits, targets: jnp.sum(heuristics.epig(logits, targets)), argnums=(0, 1)))


def make_logits(shape, seed=0, scale=1.0, impossible=0.0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=shape)
    masked = rng.random(shape) < impossible
    np.put_along_axis(masked, rng.integers(0, shape[-1], (*shape[:-1], 1)), False, axis=-1)
    return np.where(masked, -np.inf, logits).astype(np.float32)


def expected(logits, targets):
    return oracle.epig(oracle.softmax(logits), oracle.softmax(targets))


cases = st.builds(
    lambda seed, scale, impossible: (
        make_logits((4, 5, 3), seed, scale, impossible),
        make_logits((4, 6, 2), seed + 1, scale, impossible),
    ),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.01, 1.0, 10.0, 100.0]),
    impossible=st.sampled_from([0.0, 0.4]),
)


@given(cases)
def test_equals_the_double_loop(case):
    # Candidates and targets need not have the same classes.
    close(heuristics.epig(*case), expected(*case))


@given(cases)
def test_bounds(case):
    logits, targets = case
    scores = np.asarray(heuristics.epig(logits, targets))
    entropy = oracle.entropy(oracle.softmax(logits))
    target_entropy = oracle.entropy(oracle.softmax(targets)).mean()
    assert (scores >= -1e-6).all()
    assert (scores <= np.minimum(entropy, target_entropy) + 1e-6).all()
    assert (scores <= oracle.bald(oracle.softmax(logits)) + 1e-6).all()


def test_baal_golden_numbers():
    logits = heuristics.from_baal_layout(np.log(baal.PROBS))
    targets = heuristics.from_baal_layout(np.log(baal.TARGETS))
    np.testing.assert_allclose(heuristics.epig(logits, targets), baal.GOLDEN["EPIG(P,T)"]["scores"], atol=1e-5)
    close(heuristics.epig(logits, targets), expected(logits, targets), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_loses_nothing_after_the_inputs(dtype):
    logits, targets = jnp.asarray(make_logits((4, 5, 3), 1, 3.0)), jnp.asarray(make_logits((4, 6, 2), 2, 3.0))
    logits, targets = logits.astype(dtype), targets.astype(dtype)
    scores = heuristics.epig(logits, targets)
    assert (scores.shape, scores.dtype) == ((5,), jnp.float32)
    close(scores, expected(logits, targets))


def test_one_target_that_is_the_candidate():
    logits = make_logits((4, 5, 3), 3, 3.0)
    p = oracle.softmax(logits)
    for i in range(5):
        score = heuristics.epig(logits[:, i : i + 1], logits[:, i : i + 1])
        close(score, [oracle.mutual_information(p[:, i], p[:, i])])
        assert score[0] > 1e-2


def test_one_draw_tells_nothing():
    logits, targets = make_logits((1, 5, 3), 4, 5.0, 0.3), make_logits((1, 6, 2), 5, 5.0, 0.3)
    close(heuristics.epig(logits, targets), 0, atol=1e-7)


def test_a_target_that_does_not_depend_on_the_draw_tells_nothing():
    logits, targets = make_logits((4, 5, 3), 6, 5.0), np.repeat(make_logits((1, 6, 2), 7, 5.0), 4, axis=0)
    close(heuristics.epig(logits, targets), 0)


def test_sure_draws_share_all_they_know():
    sure = np.array([[0, -np.inf], [-np.inf, 0]], np.float32)[:, None]
    np.testing.assert_allclose(heuristics.epig(sure, sure), math.log(2), rtol=1e-6)


def test_targets_are_averaged_and_draws_have_no_order():
    logits, targets = make_logits((4, 5, 3), 8, 3.0), make_logits((4, 6, 2), 9, 3.0)
    scores, rng = heuristics.epig(logits, targets), np.random.default_rng(0)
    draws = rng.permutation(4)
    close(heuristics.epig(logits[draws], targets[draws]), scores, rtol=1e-6)
    close(heuristics.epig(logits, targets[:, rng.permutation(6)]), scores, rtol=1e-6)
    assert np.max(np.abs(heuristics.epig(logits[::-1], targets) - scores)) > 1e-3  # but they belong together
    halves = [heuristics.epig(logits, targets[:, half]) for half in (slice(0, 3), slice(3, 6))]
    close(np.mean(halves, axis=0), scores)


def test_chunks_of_candidates_equal_the_whole():
    logits, targets = make_logits((4, 10, 3), 10, 3.0), make_logits((4, 6, 2), 11, 3.0)
    chunks = [heuristics.epig(logits[:, :5], targets), heuristics.epig(logits[:, 5:], targets)]
    close(np.concatenate(chunks), heuristics.epig(logits, targets), rtol=1e-6)


def test_nan_of_a_candidate_stays_there_and_nan_of_a_target_reaches_all():
    logits, targets = make_logits((4, 5, 3), 12), make_logits((4, 6, 2), 13)
    broken = logits.copy()
    broken[1, 2, 0] = np.nan
    scores = np.asarray(heuristics.epig(broken, targets))
    np.testing.assert_array_equal(np.isnan(scores), np.arange(5) == 2)
    np.testing.assert_array_equal(np.delete(scores, 2), np.delete(heuristics.epig(logits, targets), 2))
    targets[1, 2, 0] = np.nan
    assert np.isnan(heuristics.epig(logits, targets)).all()


@pytest.mark.parametrize("gap", [30.0, 43.25, 43.5, 43.75, 60.0, 100.0])
def test_joint_probabilities_may_underflow(gap):
    # Both classes are rare in one draw and impossible in the other: p p' leaves float32 well before p does.
    logits = np.zeros((4, 5, 3), np.float32)
    logits[0, :, 1], logits[1:, :, 1] = -gap, -np.inf
    targets = logits[:, [0, 1, 2, 3, 4, 0], :2]
    close(heuristics.epig(logits, targets), expected(logits, targets))
    assert all(np.isfinite(gradient).all() for gradient in gradients(logits, targets))


@pytest.mark.parametrize(("scale", "impossible"), [(1.0, 0.0), (10.0, 0.0), (1.0, 0.4), (0.0, 0.0)])
def test_gradients_equal_finite_differences(scale, impossible):
    case = [make_logits((4, 5, 3), 14, scale, impossible), make_logits((4, 6, 2), 15, scale, impossible)]
    found = gradients(*case)
    for side in range(2):
        difference = np.zeros(case[side].shape)
        for i in np.ndindex(difference.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = [x.astype(np.float64) for x in case]
                moved[side][i] += step
                values.append(np.sum(expected(*moved)))
            difference[i] = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(found[side], difference, rtol=1e-4, atol=1e-5)


def test_compiled_equals_eager():
    logits, targets = make_logits((4, 5, 3), 16, 3.0, 0.2), make_logits((4, 6, 2), 17, 3.0, 0.2)
    close(heuristics.epig(logits, targets), inspect.unwrap(heuristics.epig)(logits, targets), rtol=1e-6)


def test_vmaps_over_seeds():
    logits = np.stack([make_logits((4, 5, 3), seed, 3.0) for seed in range(3)])
    targets = np.stack([make_logits((4, 6, 2), seed, 3.0) for seed in range(3, 6)])
    alone = [heuristics.epig(*case) for case in zip(logits, targets, strict=True)]
    close(jax.vmap(heuristics.epig)(logits, targets), np.stack(alone), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "target_shape", "message"),
    [
        ((5, 3), (4, 6, 3), r"^logits has shape \(5, 3\)"),
        ((4, 5, 3), (6, 3), r"^target_logits has shape \(6, 3\)"),
        ((4, 5, 2, 3), (4, 6, 3), r"^logits .* flatten the middle axes"),
        ((4, 5, 3), (4, 6, 2, 3), r"^target_logits .* flatten the middle axes"),
        ((4, 5, 3), (3, 6, 3), "4 draws of logits and 3 of target_logits"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(shape, target_shape, message):
    with pytest.raises(ValueError, match=message):
        heuristics.epig(jnp.zeros(shape), jnp.zeros(target_shape))


def test_a_list_of_outputs_is_an_error():
    with pytest.raises(ValueError, match=r"heuristics\.combine"):
        heuristics.epig([jnp.zeros((4, 5, 3))], jnp.zeros((4, 6, 3)))
