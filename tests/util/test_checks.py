"""Errors that name the argument, the value and the cure, and what passes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax._util import checks


def test_numbers():
    for value in (1, np.int32(3), np.uint8(3)):
        number = checks.positive_int("size", value)
        assert (type(number), number) == (int, value)
    for value, least in ((0, 1), (-1, 0), (True, 1), (2.0, 1), ("2", 1), (None, 1), ([2], 1)):
        with pytest.raises(ValueError, match=r"^size=.* must be an integer of at least"):
            checks.positive_int("size", value, least)
    assert [checks.positive_int("size", 0, least=0), checks.optional_int("size", None)] == [0, None]
    with pytest.raises(ValueError, match="size=0 must be an integer of at least 1"):
        checks.optional_int("size", 0)
    for value in (0.5, np.float32(0.5), np.float64(0.5)):
        for number in (checks.finite_float("rate", value, 0.5), checks.positive_float("rate", value)):
            assert (type(number), number) == (float, 0.5)
    assert (checks.finite_float("rate", 0, 0.0), checks.noise(None), checks.noise(2)) == (0.0, None, 2.0)
    for value in (-0.1, math.inf, math.nan, True, "1", None, [1.0]):
        with pytest.raises(ValueError, match=r"^rate=.* must be a finite number of at least 0"):
            checks.finite_float("rate", value, 0.0)
        with pytest.raises(ValueError, match=r"^rate=.* must be a finite number above 0"):
            checks.positive_float("rate", value)
    with pytest.raises(ValueError, match=r"^noise=0\.0 must be a finite number above 0"):
        checks.noise(0.0)


def test_one_typed_key():
    checks.typed_key("key", jax.random.key(0, impl="rbg"))
    for value in (0, np.zeros(2, np.uint32), jax.random.PRNGKey(0), None):
        with pytest.raises(ValueError, match="must be a typed key: make one with"):
            checks.typed_key("key", value)
    with pytest.raises(ValueError, match=r"key has shape \(2,\), but one key is needed: vmap"):
        checks.typed_key("key", jax.random.split(jax.random.key(0)))


def test_ids_of_a_data_set_which_cannot_be_looked_at_where_they_are_traced():
    for ids in ([], [0, 4], [-1, -1, 2], 3, np.array([1], np.uint8)):  # −1 is padding, as often as one likes
        checks.indices("ids", ids, 5)
    for ids, message in (([5], "ids holds 5, outside"), ([-2], "-2, outside"), ([3, 1, 3], "3 more than once")):
        with pytest.raises(ValueError, match=message):
            checks.indices("ids", ids, 5)
        jax.eval_shape(lambda ids: checks.indices("ids", ids, 5), np.array(ids))
    with pytest.raises(ValueError, match="ids must be integer ids, not float32: use"):
        jax.eval_shape(lambda ids: checks.indices("ids", ids, 5), np.zeros(2, np.float32))
    known = []
    jax.eval_shape(lambda x: known.append(checks.is_concrete({"a": 1, "b": x})), 1.0)
    assert known == [False]
    assert checks.is_concrete(jnp.zeros(2), {"a": 1}, None)


def test_outputs_of_draws_and_classes():
    good = np.zeros((2, 3, 2))
    for check in (checks.draws, checks.classes):
        check("logits", good)
        for outputs, name, message in (
            ({"a": good}, "logits", "logits is a dict of outputs: score several with heuristics.combine"),
            ((good,), "logits", "logits is a tuple of outputs"),
            (None, "logits", "there is no fit to predict with"),
            (None, "target_logits", "pass the inputs that matter as target_inputs"),
            (good[0], "logits", r"logits has shape \(3, 2\), but draws, examples and classes"),
        ):
            with pytest.raises(ValueError, match=message):
                check(name, outputs)
    checks.draws("logits", good[..., :1])
    with pytest.raises(ValueError, match="with a single class: turn sigmoid outputs into two"):
        checks.classes("logits", good[..., :1])


def test_trees_of_arrays_and_what_an_extra_brings():
    array = np.zeros((4, 2))
    assert checks.one_array({"out": array}, "one is needed") is array
    with pytest.raises(ValueError, match="the network has 2 outputs, but one is needed"):
        checks.one_array((array, array), "one is needed")
    assert checks.leading_axis("data", {"a": array, "b": np.zeros(4)}) == 4
    for tree in ({"a": array, "b": np.zeros(3)}, np.float32(1), (), {"a": array, "b": 3.0}):
        with pytest.raises(ValueError, match="data needs one common leading axis of examples, but its shapes are"):
            checks.leading_axis("data", tree)
    assert checks.optional_import("math", "none") is math
    with pytest.raises(ImportError, match=r"nowhere_to_be_found is needed here: pip install 'baal_jax\[plots\]'"):
        checks.optional_import("nowhere_to_be_found", "plots")
