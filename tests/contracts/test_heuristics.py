"""Heuristics against float64 oracles, Baal's golden numbers and the properties that define them."""

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

# Few shapes, because each of them is compiled once for every heuristic.
SHAPES = [(1, 2, 2), (4, 5, 3), (4, 3, 2, 2, 3), (7, 3, 1, 11)]
PROBS = heuristics.from_baal_layout(np.log(baal.PROBS))  # [4, 5, 3]
LOGITS = heuristics.from_baal_layout(baal.LOGITS)
MAPS = heuristics.from_baal_layout(np.log(baal.MAPS))  # [4, 3, 2, 2, 3]
INFORMATION = ("bald", "entropy", "expected_entropy")
every_heuristic = pytest.mark.parametrize("name", heuristics.REGISTRY)

close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)


def make_logits(shape, seed=0, scale=1.0, impossible=0.0):
    """Random logits, some of them −inf, with at least one finite one a row."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=shape)
    masked = rng.random(shape) < impossible
    np.put_along_axis(masked, rng.integers(0, shape[-1], (*shape[:-1], 1)), False, axis=-1)
    return np.where(masked, -np.inf, logits).astype(np.float32)


def suited(name, logits):
    """Regression outputs are finite numbers."""
    return np.where(np.isfinite(logits), logits, 0).astype(logits.dtype) if name == "variance" else logits


def expected(name, logits):
    return getattr(oracle, name)(np.asarray(logits) if name == "variance" else oracle.softmax(logits))


random_logits = st.builds(
    make_logits,
    st.sampled_from(SHAPES),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.01, 1.0, 10.0, 100.0]),
    impossible=st.sampled_from([0.0, 0.4]),
)


# Against the oracle


@every_heuristic
@given(logits=random_logits)
def test_equals_the_oracle(name, logits):
    logits = suited(name, logits)
    close(heuristics.REGISTRY[name](logits), expected(name, logits))


@every_heuristic
def test_half_precision_loses_nothing_after_the_inputs(name):
    for scale in (1.0, 30.0):
        logits = jnp.asarray(suited(name, make_logits((4, 5, 3), 3, scale, 0.2))).astype(jnp.bfloat16)
        close(heuristics.REGISTRY[name](logits), expected(name, logits))


@every_heuristic
def test_float64_is_kept(name):
    logits = suited(name, make_logits((4, 5, 3), 4, 2.0, 0.2)).astype(np.float64) / 3
    with jax.enable_x64(True):
        scores = heuristics.REGISTRY[name](logits)
        assert scores.dtype == jnp.float64
        np.testing.assert_allclose(scores, expected(name, logits), rtol=1e-8, atol=1e-9)


@every_heuristic
def test_shapes_and_dtypes(name):
    for middle in ((), (6,), (2, 3), (2, 3, 2)):
        for dtype in (jnp.float32, jnp.float16, jnp.bfloat16, jnp.int32):
            out = jax.eval_shape(heuristics.REGISTRY[name], jax.ShapeDtypeStruct((3, 5, *middle, 4), dtype))
            assert (out.shape, out.dtype) == ((5, *middle), jnp.float32)


@every_heuristic
def test_registry_names_the_functions(name):
    assert heuristics.REGISTRY[name] is getattr(heuristics, name)


def test_small_bald_keeps_its_digits():
    base = make_logits((1, 5, 3), 5)
    logits = (base + 1e-3 * make_logits((4, 5, 3), 6)).astype(np.float32)
    truth = expected("bald", logits)
    p = oracle.softmax(logits).astype(np.float32)
    naive = oracle.entropy(p) - oracle.expected_entropy(p)
    assert naive.dtype == np.float32
    assert np.max(np.abs(naive / truth - 1)) > 1e-2  # or this would prove nothing
    np.testing.assert_allclose(heuristics.bald(logits), truth, rtol=1e-3)


# Conformance: golden numbers


@pytest.mark.parametrize("logits", [PROBS, LOGITS], ids=["probabilities", "logits"])
def test_baal_scores_of_probabilities_and_of_logits(logits):
    # Cases 1–5. Logits are made probabilities draw by draw, where Baal averages first.
    close(heuristics.bald(logits), baal.GOLDEN["BALD(P)"]["scores"])
    close(heuristics.entropy(logits), baal.GOLDEN["Entropy(P)"]["scores"])
    close(heuristics.margin(logits), -np.array(baal.GOLDEN["Margin(P)"]["scores"]))
    close(heuristics.least_confidence(logits), 1 - np.array(baal.GOLDEN["Certainty(P)"]["scores"]))


def test_baal_variance():
    # Case 6.
    outputs = heuristics.from_baal_layout(baal.PROBS)
    close(heuristics.variance(outputs), baal.GOLDEN["Variance(P)"]["scores"])
    close(3 * heuristics.variance(outputs), baal.GOLDEN["Variance_sum(P)"]["scores"])
    close(heuristics.variance(LOGITS), baal.GOLDEN["Variance(L)"]["scores"])


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("bald", "BALD"),
        ("entropy", "Entropy"),
        ("margin", "Margin"),
        ("least_confidence", "Certainty"),
        ("variance", "Variance"),
    ],
)
def test_baal_ranks(name, golden):
    # Cases 1–6: Baal ranks ascending where low values are uncertain; here high is informative, always.
    scores = heuristics.REGISTRY[name](heuristics.from_baal_layout(baal.PROBS) if name == "variance" else PROBS)
    assert np.argsort(-scores).tolist() == baal.GOLDEN[f"{golden}(P)"]["ranks"]


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min"])
def test_baal_reductions(reduction):
    # Case 7.
    def golden(name, reduction=reduction):
        return np.array(baal.GOLDEN[f"{name}(PS,{reduction})"]["scores"])

    def reduced(scores):
        return heuristics.reduce_spatial(scores, reduction)

    turned = {"min": "max", "max": "min"}.get(reduction, reduction)  # of scores whose sign was turned
    positions = 4 if reduction == "sum" else 1
    close(reduced(heuristics.bald(MAPS)), golden("BALD"))
    close(reduced(heuristics.entropy(MAPS)), golden("Entropy"))
    close(reduced(heuristics.margin(MAPS)), -golden("Margin", turned))
    close(reduced(heuristics.least_confidence(MAPS)), positions - golden("Certainty", turned))
    outputs = heuristics.from_baal_layout(baal.MAPS)
    close(reduced(heuristics.variance(outputs[..., None])), golden("Variance"))  # Baal reduces the classes with the map


# Conformance: properties


@given(logits=random_logits)
def test_information_splits_and_is_bounded(logits):
    # Case 8.
    num_draws, num_classes = logits.shape[0], logits.shape[-1]
    bald, entropy, expected_entropy = (np.asarray(heuristics.REGISTRY[name](logits)) for name in INFORMATION)
    close(entropy, bald + expected_entropy)
    assert (bald >= 0).all()
    assert (bald <= min(math.log(num_draws), math.log(num_classes)) + 1e-6).all()
    assert (bald <= entropy + 1e-6).all()
    assert (entropy <= math.log(num_classes) + 1e-6).all()


@given(logits=random_logits)
def test_uncertainty_is_bounded(logits):
    share = 1 - 1 / logits.shape[-1]
    for name, low, high in [
        ("margin", -1, 0),
        ("least_confidence", 0, share),
        ("variation_ratio", 0, share),
        ("mean_std", 0, 0.5),
    ]:
        scores = np.asarray(heuristics.REGISTRY[name](logits))
        assert (scores >= low - 1e-6).all()
        assert (scores <= high + 1e-6).all()


@pytest.mark.parametrize("num_draws", [2, 41, 47, 82])  # 41 · (1/41) is not 1 in float32
def test_equal_draws_disagree_by_exactly_zero(num_draws):
    # Case 9.
    one = np.concatenate([make_logits((1, 7, 5), 7, 3.0), make_logits((1, 7, 5), 8, 3.0, 0.5)], axis=1)
    logits = np.repeat(one, num_draws, axis=0)
    np.testing.assert_array_equal(heuristics.bald(logits), 0)


def test_equal_draws_do_not_spread():
    for situation in ("equal", "equal and impossible"):
        close(heuristics.mean_std(SITUATIONS[situation]), 0, atol=1e-6)
        np.testing.assert_array_equal(heuristics.variation_ratio(SITUATIONS[situation]), 0)


def test_opposite_one_hots_disagree_by_log_two():
    # Case 9; the rows hold p = 0.
    logits = np.array([[[0, -np.inf]], [[-np.inf, 0]]], np.float32)
    close(heuristics.bald(logits), math.log(2), rtol=1e-6)
    close(heuristics.entropy(logits), math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(heuristics.expected_entropy(logits), 0)
    np.testing.assert_array_equal(heuristics.bald(logits[:1]), 0)
    np.testing.assert_array_equal(heuristics.mean_std(logits), 0.5)


@every_heuristic
def test_draws_and_classes_have_no_order(name):
    # Case 10.
    heuristic, rng = heuristics.REGISTRY[name], np.random.default_rng(9)
    logits = suited(name, make_logits((4, 5, 3), 9, 2.0, 0.1))
    scores = heuristic(logits)
    close(heuristic(logits[rng.permutation(4)]), scores, rtol=1e-6, atol=1e-6)
    close(heuristic(logits[..., rng.permutation(3)]), scores, rtol=1e-6, atol=1e-6)
    close(heuristic(np.concatenate([logits, logits])), scores, rtol=1e-6, atol=1e-6)


@every_heuristic
def test_a_shift_of_a_row_changes_nothing(name):
    logits = make_logits((4, 5, 3), 10)
    shift = np.random.default_rng(11).normal(size=(4, 5, 1)).astype(np.float32)
    shifted = heuristics.REGISTRY[name](logits + shift)
    if name == "variance":  # the only one that reads its input as it is
        assert np.min(np.abs(shifted - heuristics.variance(logits))) > 1e-3
        return
    close(shifted, heuristics.REGISTRY[name](logits))
    close(heuristics.REGISTRY[name](jax.nn.log_softmax(logits)), heuristics.REGISTRY[name](logits))


@every_heuristic
@pytest.mark.parametrize("change", [1.0001, 37.0, np.nan, np.inf])
def test_an_example_does_not_change_the_others(name, change):
    # Cases 11 and 13.
    logits = make_logits((4, 5, 3), 12, 2.0)
    changed = logits.copy()
    changed[:, 2] *= change
    scores, others = heuristics.REGISTRY[name](logits), [0, 1, 3, 4]
    np.testing.assert_array_equal(heuristics.REGISTRY[name](changed)[np.array(others)], scores[np.array(others)])


def test_half_precision_keeps_the_ranking():
    # Case 12: Baal takes half-precision probabilities for logits.
    half = np.log(baal.PROBS.astype(np.float16))
    close(heuristics.bald(heuristics.from_baal_layout(half)), baal.GOLDEN["BALD(P)"]["scores"], atol=5e-3)
    logits = np.random.default_rng(0).normal(size=(20, 2000, 10))
    truth = oracle.bald(oracle.softmax(logits))
    scores = np.asarray(heuristics.bald(logits.astype(np.float16)))
    top = [set(np.argsort(-x)[:100].tolist()) for x in (scores, truth)]
    assert len(top[0] & top[1]) >= 98


@every_heuristic
@pytest.mark.parametrize("where", [(1, 2, 0), (slice(None), 2, slice(None))], ids=["one", "all"])
def test_nan_comes_through(name, where):
    # Case 13: no silent replacement.
    logits = make_logits((4, 5, 3), 13)
    logits[where] = np.nan
    np.testing.assert_array_equal(np.isnan(heuristics.REGISTRY[name](logits)), np.arange(5) == 2)


@every_heuristic
def test_chunks_equal_the_whole(name):
    # Case 17.
    heuristic = heuristics.REGISTRY[name]
    logits = suited(name, make_logits((4, 10, 3), 14, 5.0, 0.2))
    chunks = [heuristic(logits[:, :5]), heuristic(logits[:, 5:])]
    close(np.concatenate(chunks), heuristic(logits), rtol=1e-6, atol=1e-6)


@every_heuristic
def test_a_position_is_scored_like_an_example(name):
    logits = suited(name, make_logits((4, 3, 2, 2, 3), 15, 2.0, 0.2))
    flat = heuristics.REGISTRY[name](logits.reshape(4, 12, 3)[:, 5:10])
    close(heuristics.REGISTRY[name](logits).reshape(12)[5:10], flat, rtol=1e-6, atol=1e-6)


# Conformance: errors


@every_heuristic
def test_a_prediction_without_draws_is_an_error(name):
    # Case 15.
    with pytest.raises(ValueError, match=r"shape \(5, 3\).*\[None\]"):
        heuristics.REGISTRY[name](jnp.zeros((5, 3)))


@every_heuristic
@pytest.mark.parametrize("container", [lambda x: [x, x], lambda x: (x, x), lambda x: {"a": x}])
def test_several_outputs_are_an_error_that_names_combine(name, container):
    # Case 15.
    with pytest.raises(ValueError, match=r"heuristics\.combine"):
        heuristics.REGISTRY[name](container(jnp.zeros((4, 5, 3))))


@pytest.mark.parametrize("name", [name for name in heuristics.REGISTRY if name != "variance"])
def test_a_single_class_is_an_error_that_names_binary_logits(name):
    # Case 14.
    with pytest.raises(ValueError, match=r"heuristics\.binary_logits"):
        heuristics.REGISTRY[name](jnp.zeros((4, 5, 1)))


# Transformations


SITUATIONS = {
    "ordinary": make_logits((4, 5, 3), 20),
    "sharp": make_logits((4, 5, 3), 21, 10.0),
    "impossible": make_logits((4, 5, 3), 22, 1.0, 0.4),
    "never": np.where(np.arange(3) == 1, -np.inf, make_logits((4, 5, 3), 23)).astype(np.float32),
    "underflow": np.where(np.arange(3) == 1, -200, make_logits((4, 5, 3), 24)).astype(np.float32),
    "equal": np.repeat(make_logits((1, 5, 3), 25), 4, axis=0),
    "equal and impossible": np.repeat(make_logits((1, 5, 3), 26, 1.0, 0.6), 4, axis=0),
}


@functools.cache
def gradient_of(name):
    return jax.jit(jax.grad(lambda logits: jnp.sum(heuristics.REGISTRY[name](logits))))


def central_difference(function, x, step=1e-6):
    gradient = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        gradient[i] = np.sum(function(high) - function(low)) / (2 * step)
    return gradient


@every_heuristic
@pytest.mark.parametrize("situation", SITUATIONS)
def test_gradients_equal_finite_differences(name, situation):
    logits = suited(name, SITUATIONS[situation])
    difference = central_difference(lambda x: expected(name, x), logits.astype(np.float64))
    np.testing.assert_allclose(gradient_of(name)(logits), difference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", INFORMATION)
def test_gradients_of_information_are_not_zero(name):
    assert np.max(np.abs(gradient_of(name)(SITUATIONS["ordinary"]))) > 1e-2


@every_heuristic
def test_compiled_equals_eager(name):
    logits = suited(name, make_logits((4, 5, 3), 27, 3.0, 0.2))
    eager = inspect.unwrap(heuristics.REGISTRY[name])
    assert eager is not heuristics.REGISTRY[name]  # exported compiled
    close(heuristics.REGISTRY[name](logits), eager(logits), rtol=1e-6, atol=1e-6)


@every_heuristic
def test_vmaps_over_seeds(name):
    seeds = np.stack([suited(name, make_logits((4, 5, 3), seed, 3.0, 0.2)) for seed in range(3)])
    alone = np.stack([heuristics.REGISTRY[name](logits) for logits in seeds])
    close(jax.vmap(heuristics.REGISTRY[name])(seeds), alone, rtol=1e-6, atol=1e-6)
