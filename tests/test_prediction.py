"""Prediction in batches, on several devices and from the host: the same numbers, in bounded memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import baal_jax as baal
from baal_jax import heuristics, metrics
from baal_jax.data import View
from baal_jax.prediction import summarise

SIZE, DRAWS, CLASSES = 72, 5, 3
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
STATE = jnp.asarray(np.random.default_rng(0).normal(size=(4, CLASSES)), jnp.float32)
INPUTS = jnp.asarray(np.random.default_rng(1).normal(size=(SIZE, 4)), jnp.float32)


def noisy_weights(draw):
    return STATE + 0.5 * jax.random.normal(draw, STATE.shape)


def apply_linear(state, draw, inputs):
    return inputs @ (state + 0.5 * jax.random.normal(draw, state.shape))


def split(key, state, num_samples):
    return jax.random.split(key, num_samples)


LINEAR = baal.Posterior(fit=None, sample=split, apply=apply_linear)
TWO_HEADS = baal.Posterior(
    fit=None,
    sample=split,
    apply=lambda state, draw, inputs: {
        "class": apply_linear(state, draw, inputs["x"]),
        "size": apply_linear(state, draw, inputs["x"])[:, :1] * inputs["scale"][:, None],
    },
)
TWO_INPUTS = {"x": INPUTS, "scale": jnp.linspace(0.5, 2.0, SIZE)}
COMBINED = heuristics.combine([heuristics.bald, heuristics.variance], [1, 2], outputs=["class", "size"])


@pytest.fixture(scope="module")
def dropout():
    net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(CLASSES)])
    trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=3, batch_size=8)
    posterior = baal.posteriors.mc_dropout(baal.from_linen(net), trainer)
    data = baal.Dataset(INPUTS, jnp.arange(SIZE) % CLASSES)
    return posterior, posterior.fit(jax.random.key(0), data, jnp.ones(SIZE, bool))


def linear_logits(key, inputs, num_samples=DRAWS):
    return jnp.stack([inputs @ noisy_weights(draw) for draw in jax.random.split(key, num_samples)])


def test_draws_lead_and_equal_a_python_loop_over_the_same_keys(key, dropout):
    # Case 35.
    found = baal.predict(key, LINEAR, STATE, INPUTS, num_samples=DRAWS)
    assert found.shape == (DRAWS, SIZE, CLASSES)
    np.testing.assert_allclose(found, linear_logits(key, INPUTS), **CLOSE)
    assert np.asarray(found).std(0).min() > 1e-3

    posterior, state = dropout
    apply = jax.jit(posterior.apply)
    looped = [apply(state, draw, INPUTS) for draw in posterior.sample(key, state, DRAWS)]
    np.testing.assert_allclose(
        baal.predict(key, posterior, state, INPUTS, num_samples=DRAWS), jnp.stack(looped), **CLOSE
    )


def test_one_draw_keeps_its_axis(key):
    # Case 35.
    assert baal.predict(key, LINEAR, STATE, INPUTS[:5], num_samples=1).shape == (1, 5, CLASSES)


def test_equal_rows_get_equal_draws(key, dropout):
    # Case 38.
    posterior, state = dropout
    rows = INPUTS.at[50].set(INPUTS[3])
    found = baal.predict(key, posterior, state, rows, num_samples=DRAWS, batch_size=7)
    np.testing.assert_allclose(found[:, 50], found[:, 3], **CLOSE)
    assert not np.allclose(found[:, 50], found[:, 4])


def test_more_draws_begin_with_the_same_ones(key, dropout):
    posterior, state = dropout
    few, many = (baal.predict(key, posterior, state, INPUTS, num_samples=n, batch_size=64) for n in (3, DRAWS))
    np.testing.assert_allclose(many[:3], few, **CLOSE)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [*(("linear", batch_size) for batch_size in (1, 7, 64, None)), ("dropout", 7), ("two heads", 7)],
)
def test_batches_and_order_change_no_number(name, batch_size, key, request):
    # Case 38; 70 examples, so that no batch size but the largest divides them.
    posterior, state, inputs, score_fn = {
        "linear": lambda: (LINEAR, STATE, INPUTS, heuristics.bald),
        "dropout": lambda: (*request.getfixturevalue("dropout"), INPUTS, heuristics.bald),
        "two heads": lambda: (TWO_HEADS, STATE, TWO_INPUTS, COMBINED),
    }[name]()
    inputs = jax.tree.map(lambda leaf: leaf[:70], inputs)
    expected = baal.predict(key, posterior, state, inputs, num_samples=DRAWS)
    order = np.random.default_rng(5).permutation(70)
    shuffled = jax.tree.map(lambda leaf: leaf[order], inputs)
    found = baal.predict(key, posterior, state, shuffled, num_samples=DRAWS, batch_size=batch_size)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:, order], **CLOSE), found, expected)
    scores = baal.score(key, posterior, state, shuffled, score_fn, num_samples=DRAWS, batch_size=batch_size)
    np.testing.assert_allclose(scores, score_fn(expected)[order], rtol=1e-4, atol=1e-6)
    assert scores.shape == (70,)


@pytest.mark.parametrize("batch_size", [7, None])
def test_four_devices_change_no_number(batch_size, key, mesh):
    spread = jax.device_put(INPUTS, NamedSharding(mesh, PartitionSpec("pool")))
    assert len(spread.sharding.device_set) == 4
    found = baal.predict(key, LINEAR, STATE, spread, num_samples=DRAWS, batch_size=batch_size)
    np.testing.assert_allclose(found, linear_logits(key, INPUTS), **CLOSE)
    scores = baal.score(key, LINEAR, STATE, spread, heuristics.bald, num_samples=DRAWS, batch_size=batch_size)
    np.testing.assert_allclose(scores, heuristics.bald(linear_logits(key, INPUTS)), rtol=1e-4, atol=1e-6)


def test_several_outputs_keep_their_structure(key):
    found = baal.predict(key, TWO_HEADS, STATE, TWO_INPUTS, num_samples=DRAWS, batch_size=16)
    assert {name: leaf.shape for name, leaf in found.items()} == {
        "class": (DRAWS, SIZE, CLASSES),
        "size": (DRAWS, SIZE, 1),
    }
    logits = linear_logits(key, INPUTS)
    np.testing.assert_allclose(found["class"], logits, **CLOSE)
    np.testing.assert_allclose(found["size"], logits[..., :1] * TWO_INPUTS["scale"][None, :, None], **CLOSE)


def test_spatial_outputs_score_by_position(key):
    posterior = LINEAR._replace(
        apply=lambda state, draw, x: apply_linear(state, draw, x.reshape(-1, 4)).reshape(-1, 2, 3, 3)
    )
    inputs = INPUTS.reshape(12, 2, 3, 4)
    assert baal.predict(key, posterior, STATE, inputs, num_samples=2, batch_size=5).shape == (2, 12, 2, 3, 3)
    scores = baal.score(key, posterior, STATE, inputs, heuristics.bald, num_samples=DRAWS, batch_size=5)
    expected = heuristics.bald(linear_logits(key, INPUTS)).reshape(12, 2, 3)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [7, None])
def test_evaluation_weighs_every_example_alike_and_averages_probabilities(batch_size, key):
    # Cases 41 and 52.
    targets = (jnp.arange(SIZE) % CLASSES).at[3].set(-1)
    found = baal.evaluate(key, LINEAR, STATE, baal.Dataset(INPUTS, targets), num_samples=DRAWS, batch_size=batch_size)
    log_probs = metrics.model_average(linear_logits(key, INPUTS))
    for name in ("accuracy", "nll", "brier", "ece"):
        np.testing.assert_allclose(found[name], getattr(metrics, name)(log_probs, targets), rtol=1e-4, err_msg=name)
    assert found.keys() == {"accuracy", "nll", "brier", "ece"}


def test_evaluation_of_real_targets_is_regression_and_metrics_can_be_chosen(key):
    targets = jax.random.normal(jax.random.key(1), (SIZE, CLASSES))
    found = baal.evaluate(key, LINEAR, STATE, baal.Dataset(INPUTS, targets), num_samples=DRAWS)
    errors = np.asarray(linear_logits(key, INPUTS)).mean(0) - np.asarray(targets)
    np.testing.assert_allclose(found["rmse"], np.sqrt(np.mean(errors**2)), rtol=1e-5)
    chosen = metrics.classification(top_k=(2,))
    data = baal.Dataset(INPUTS, jnp.arange(SIZE) % CLASSES)
    assert "top_2_accuracy" in baal.evaluate(key, LINEAR, STATE, data, metrics=chosen, num_samples=DRAWS)


def test_scores_need_no_memory_for_all_predictions(key):
    state = jax.ShapeDtypeStruct((4, 10), jnp.float32)

    def bytes_of(function, size, num_samples, **arguments):
        inputs = jax.ShapeDtypeStruct((size, 4), jnp.float32)
        lowered = function.lower(key, LINEAR, state, inputs, num_samples=num_samples, batch_size=256, **arguments)
        memory = lowered.compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    few = bytes_of(baal.score, 2**14, 64, score_fn=heuristics.bald)
    many = bytes_of(baal.score, 2**16, 64, score_fn=heuristics.bald)
    assert few < bytes_of(baal.predict, 2**14, 64) / 20
    assert many - few < (2**16 - 2**14) * 4 * 10  # a few numbers an example, where predictions are 640


class WholeBatches:
    """As a torch or a TFDS source, asked for many examples at once."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        raise AssertionError("one example at a time")

    def __getitems__(self, ids):
        self.asked.append(list(ids))
        return [self.rows[i] for i in ids]


ROWS = np.asarray(INPUTS[:70])
SOURCES = {
    "array": lambda path: ROWS,
    "jax array": lambda path: INPUTS[:70],
    "list": lambda path: list(ROWS),
    "whole batches": lambda path: WholeBatches(ROWS),
    "tuples": lambda path: View([(row, 7, "name") for row in ROWS], lambda item: item[0]),
    "sliced array": lambda path: View(np.concatenate([ROWS, ROWS], axis=1), lambda row: row[:4]),
    "whole batches, some of them": lambda path: View(WholeBatches(np.tile(ROWS, (2, 1))), ids=np.arange(70, 140)),
    "memory map": lambda path: np.load(path, mmap_mode="r"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_stream_predicts_what_the_array_does(name, key, tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    source = SOURCES[name](tmp_path / "rows.npy")
    expected = baal.predict(key, LINEAR, STATE, INPUTS[:70], num_samples=DRAWS)
    arguments = {"num_samples": DRAWS, "batch_size": 16}
    parts = list(baal.predict_stream(key, LINEAR, STATE, source, **arguments))
    assert [part.shape for part in parts] == [(DRAWS, 16, CLASSES)] * 4 + [(DRAWS, 6, CLASSES)]
    assert all(isinstance(part, np.ndarray) for part in parts)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, **CLOSE)
    scores = baal.score_stream(key, LINEAR, STATE, source, heuristics.bald, **arguments)
    assert isinstance(scores, np.ndarray)
    np.testing.assert_allclose(scores, heuristics.bald(expected), rtol=1e-4, atol=1e-6)


def test_a_stream_of_structured_items_with_several_outputs(key):
    items = [{"x": row, "scale": np.float32(scale)} for row, scale in zip(ROWS, TWO_INPUTS["scale"][:70], strict=True)]
    inputs = jax.tree.map(lambda leaf: leaf[:70], TWO_INPUTS)
    expected = baal.predict(key, TWO_HEADS, STATE, inputs, num_samples=DRAWS)
    parts = list(baal.predict_stream(key, TWO_HEADS, STATE, items, num_samples=DRAWS, batch_size=32))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), joined, expected)
    scores = baal.score_stream(key, TWO_HEADS, STATE, items, COMBINED, num_samples=DRAWS, batch_size=32)
    np.testing.assert_allclose(scores, COMBINED(expected), rtol=1e-4, atol=1e-6)


def test_a_stream_is_read_no_further_than_one_batch_ahead(key):
    source = WholeBatches(ROWS)
    stream = baal.predict_stream(key, LINEAR, STATE, source, num_samples=DRAWS, batch_size=16)
    assert source.asked == []
    next(stream)
    assert [len(ids) for ids in source.asked] == [16, 16]
    next(stream)
    assert [i for ids in source.asked for i in ids] == list(range(48))


def test_a_remainder_does_not_compile_again(key):
    traced = []

    def apply(state, draw, inputs):
        traced.append(inputs.shape)
        return apply_linear(state, draw, inputs)

    posterior = LINEAR._replace(apply=apply)
    compiled = baal.predict._cache_size()
    list(baal.predict_stream(key, posterior, STATE, ROWS, num_samples=DRAWS, batch_size=16))
    assert baal.predict._cache_size() == compiled + 1
    assert set(traced) == {(16, 4)}
    compiled, times = baal.score._cache_size(), len(traced)
    for length in (70, 67, 5):
        baal.score_stream(key, posterior, STATE, ROWS[:length], heuristics.bald, num_samples=DRAWS, batch_size=16)
    assert baal.score._cache_size() == compiled + 1
    assert set(traced[times:]) == {(16, 4)}


def test_features_and_targets_reach_the_summary(key):
    def summary(predictions):
        assert predictions.target_logits.shape == (DRAWS, 6, CLASSES)
        return predictions.features, heuristics.epig(predictions.logits, predictions.target_logits)

    targets = INPUTS[60:66]
    features, scores = jax.jit(
        lambda key, inputs: summarise(
            key,
            LINEAR,
            STATE,
            inputs,
            summary,
            num_samples=DRAWS,
            batch_size=7,
            features=lambda state, inputs: inputs @ state + 1,
            target_inputs=targets,
        )
    )(key, INPUTS)
    np.testing.assert_allclose(features, INPUTS @ STATE + 1, **CLOSE)
    # The same draws predict the pool and the targets.
    expected = heuristics.epig(linear_logits(key, INPUTS), linear_logits(key, targets))
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)


def test_no_key_is_used_twice(key_reuse):
    # In one batch: that several batches meet the same draws is the point of them.
    scores = baal.score(jax.random.key(3), LINEAR, STATE, INPUTS, heuristics.entropy, num_samples=2, batch_size=None)
    assert scores.shape == (SIZE,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"key": jax.random.PRNGKey(0)}, "typed key"),
        ({"key": jax.random.split(jax.random.key(0))}, "one key is needed"),
        ({"inputs": {"x": INPUTS, "scale": INPUTS[:3]}}, "one common leading axis"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message, key):
    call = {"key": key, "posterior": LINEAR, "state": STATE, "inputs": INPUTS} | arguments
    with pytest.raises(ValueError, match=message):
        baal.predict(**call)
    with pytest.raises(ValueError, match=message):
        baal.score(**call, score_fn=heuristics.bald)


def test_streams_refuse_empty_sources_and_wrong_sizes(key):
    for source in ([], np.zeros((0, 4))):
        with pytest.raises(ValueError, match="source is empty"):
            baal.predict_stream(key, LINEAR, STATE, source)
        with pytest.raises(ValueError, match="source is empty"):
            baal.score_stream(key, LINEAR, STATE, source, heuristics.bald)
    with pytest.raises(ValueError, match="batch_size=0"):
        baal.score_stream(key, LINEAR, STATE, ROWS, heuristics.bald, batch_size=0)
    with pytest.raises(ValueError, match="num_samples=0"):
        list(baal.predict_stream(key, LINEAR, STATE, ROWS, num_samples=0))


def test_evaluation_refuses_targets_of_another_length(key):
    with pytest.raises(ValueError, match="one common leading axis"):
        baal.evaluate(key, LINEAR, STATE, baal.Dataset(INPUTS, jnp.zeros(3, int)))
