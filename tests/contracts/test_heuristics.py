"""Heuristics against float64 oracles, Baal's golden numbers and the properties that define them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baal_jax import heuristics
from tests.contracts import members
from tests.fixtures import make_logits
from tests.oracles import baal
from tests.oracles import heuristics as oracle

MEMBERS = members("heuristics", heuristics.REGISTRY)
SHAPE, MAPS_SHAPE = (4, 5, 3), (4, 3, 2, 2, 3)  # few shapes: each of them is compiled for every heuristic
PROBS, LOGITS, MAPS = (baal.to_package_layout(x) for x in (np.log(baal.PROBS), baal.LOGITS, np.log(baal.MAPS)))
every_heuristic = pytest.mark.parametrize("name", MEMBERS)
close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)


def known(name):
    """The heuristic that this is, or that a faulty member is made of."""
    return next(whole for whole in heuristics.REGISTRY if name.removeprefix("broken_").startswith(whole))


def suited(name, logits):
    """Regression outputs are finite numbers."""
    return np.where(np.isfinite(logits), logits, 0).astype(logits.dtype) if known(name) == "variance" else logits


def expected(name, logits):
    return oracle.of_logits(known(name), logits)


@every_heuristic
@settings(max_examples=16)
@given(
    logits=st.builds(
        make_logits,
        st.sampled_from([SHAPE, MAPS_SHAPE]),
        seed=st.integers(0, 2**32 - 1),
        scale=st.sampled_from([0.01, 1.0, 10.0, 100.0]),
        impossible=st.sampled_from([0.0, 0.4]),
    )
)
def test_equals_the_oracle(name, logits):
    # Which knows no order of draws or classes (case 10), no shift of a row, and every position alone (case 17).
    logits = suited(name, logits)
    close(MEMBERS[name](logits), expected(name, logits))


@every_heuristic
def test_shapes_and_dtypes_exported_compiled(name):
    """Half precision is widened and double precision kept, and seeds are vectorised."""
    assert hasattr(MEMBERS[name], "lower")
    for middle in ((), (6,), (2, 3, 2)):
        for dtype in (jnp.float32, jnp.float16, jnp.bfloat16, jnp.int32):
            out = jax.eval_shape(MEMBERS[name], jax.ShapeDtypeStruct((3, 5, *middle, 4), dtype))
            assert (out.shape, out.dtype) == ((5, *middle), jnp.float32)
    seeds = np.stack([suited(name, make_logits(SHAPE, 3, scale, 0.2)) for scale in (1.0, 30.0)]).astype(jnp.bfloat16)
    close(jax.jit(jax.vmap(MEMBERS[name]))(seeds), np.stack([expected(name, logits) for logits in seeds]))
    logits = suited(name, make_logits(SHAPE, 4, 2.0, 0.2)).astype(np.float64) / 3
    with jax.enable_x64(True):
        scores = MEMBERS[name](logits)
    assert scores.dtype == jnp.float64
    np.testing.assert_allclose(scores, expected(name, logits), rtol=1e-8, atol=1e-9)


@every_heuristic
def test_an_example_does_not_change_the_others_and_its_nan_comes_through(name):
    # Cases 11 and 13: no silent replacement.
    logits = make_logits(SHAPE, 12, 2.0)
    scores = np.asarray(MEMBERS[name](logits))
    for change in (1.0001, 37.0, np.inf, np.nan):
        changed = logits.copy()
        changed[:, 2] *= change
        found = np.asarray(MEMBERS[name](changed))
        np.testing.assert_array_equal(np.delete(found, 2), np.delete(scores, 2))
    assert np.isnan(found[2])
    logits[1, 2, 0] = np.nan  # one number of one draw
    np.testing.assert_array_equal(np.isnan(MEMBERS[name](logits)), np.arange(5) == 2)


@every_heuristic
def test_outputs_that_cannot_be_scored_are_errors_that_name_the_cure(name):
    # Cases 14 and 15.
    for outputs, message in (
        (np.zeros((5, 3)), r"shape \(5, 3\).*\[None\]"),
        (None, "is None: there is no fit"),
        ([LOGITS] * 2, r"heuristics\.combine"),
        ((LOGITS,) * 2, r"heuristics\.combine"),
        ({"a": LOGITS}, r"heuristics\.combine"),
        *[(np.zeros((4, 5, 1)), r"heuristics\.binary_logits")] * (known(name) != "variance"),
    ):
        with pytest.raises(ValueError, match=message):
            MEMBERS[name](outputs)


SITUATIONS = {
    "ordinary": make_logits(SHAPE, 20),
    "sharp": make_logits(SHAPE, 21, 10.0),
    "impossible": make_logits(SHAPE, 22, 1.0, 0.4),
    "never": np.where(np.arange(3) == 1, -np.inf, make_logits(SHAPE, 23)).astype(np.float32),
    "underflow": np.where(np.arange(3) == 1, -200, make_logits(SHAPE, 24)).astype(np.float32),
    "equal": np.repeat(make_logits((1, 5, 3), 25), 4, axis=0),
    "equal and impossible": np.repeat(make_logits((1, 5, 3), 26, 1.0, 0.6), 4, axis=0),
}


@every_heuristic
def test_gradients_equal_finite_differences(name):
    gradient = jax.jit(jax.grad(lambda logits: jnp.sum(MEMBERS[name](logits))))
    for situation, logits in SITUATIONS.items():
        logits = suited(name, logits)
        difference = oracle.central_difference(lambda x: expected(name, x), logits.astype(np.float64))
        np.testing.assert_allclose(gradient(logits), difference, rtol=1e-4, atol=1e-5, err_msg=situation)


# Golden numbers


def test_baal_scores_of_probabilities_and_of_logits():
    # Cases 1–6. Logits are made probabilities draw by draw, where Baal averages first. Baal ranks ascending where low
    # values are uncertain; here high is informative, always.
    outputs = baal.to_package_layout(baal.PROBS)
    for name, golden, truth in (
        ("bald", "BALD", lambda x: x),
        ("entropy", "Entropy", lambda x: x),
        ("margin", "Margin", lambda x: -x),
        ("least_confidence", "Certainty", lambda x: 1 - x),
        ("variance", "Variance", lambda x: x),
    ):
        for known_as in [outputs] if name == "variance" else [PROBS, LOGITS]:
            found = heuristics.REGISTRY[name](known_as)
            close(found, truth(np.array(baal.GOLDEN[f"{golden}(P)"]["scores"])))
            assert np.argsort(-found).tolist() == baal.GOLDEN[f"{golden}(P)"]["ranks"]
    for reduction in ("mean", "sum", "max", "min"):  # case 7
        reduced = heuristics.reduce_spatial(heuristics.bald(MAPS), reduction)
        close(reduced, baal.GOLDEN[f"BALD(PS,{reduction})"]["scores"])
    # Case 12: Baal takes half-precision probabilities for logits.
    half = baal.to_package_layout(np.log(baal.PROBS.astype(np.float16)))
    close(heuristics.bald(half), baal.GOLDEN["BALD(P)"]["scores"], atol=5e-3)
    close(3 * heuristics.variance(outputs), baal.GOLDEN["Variance_sum(P)"]["scores"])
    close(heuristics.variance(LOGITS), baal.GOLDEN["Variance(L)"]["scores"])


# What no oracle says


def test_information_splits():
    # Case 8.
    logits = make_logits(SHAPE, 0, 1.0, 0.4)
    parts = heuristics.uncertainty(logits)
    alone = heuristics.entropy(logits), heuristics.expected_entropy(logits), heuristics.bald(logits)
    for part, value in zip(parts, alone, strict=True):  # other programs, whose sums may be rounded another way
        np.testing.assert_allclose(part, value, rtol=1e-6)
    close(parts.total, parts.aleatoric + parts.epistemic)


def test_equal_draws_disagree_by_exactly_zero():
    # Case 9.
    one = np.concatenate([make_logits((1, 7, 5), 7, 3.0), make_logits((1, 7, 5), 8, 3.0, 0.5)], axis=1)
    for num_draws in (41, 47):  # 41 · (1/41) is not 1 in float32
        np.testing.assert_array_equal(heuristics.bald(np.repeat(one, num_draws, axis=0)), 0)
    opposite = np.array([[[0, -np.inf]], [[-np.inf, 0]]], np.float32)
    close(heuristics.bald(opposite), math.log(2))
    np.testing.assert_array_equal(heuristics.expected_entropy(opposite), 0)
    # What is small keeps its digits and is never negative.
    for scale in (1e-3, 1e-1):
        logits = (make_logits((1, 5, 3), 5) + scale * make_logits(SHAPE, 6)).astype(np.float32)
        np.testing.assert_allclose(heuristics.bald(logits), expected("bald", logits), rtol=1e-3)
