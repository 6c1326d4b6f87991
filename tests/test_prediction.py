"""Prediction in batches: the same numbers. On several devices: contracts/test_posteriors; of sources: test_sources."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import heuristics, metrics
from tests.fixtures import LINEAR, SPY, close

SIZE, DRAWS, CLASSES = 72, 5, 3
KEY = jax.random.key(0)
STATE = np.random.default_rng(0).normal(size=(4, CLASSES)).astype(np.float32)
INPUTS = np.random.default_rng(1).normal(size=(SIZE, 4)).astype(np.float32)
TWO_INPUTS = {"x": INPUTS, "scale": np.linspace(0.5, 2.0, SIZE).astype(np.float32)}
TWO_HEADS = LINEAR._replace(
    apply=lambda state, draw, inputs: {
        "class": LINEAR.apply(state, draw, inputs["x"]),
        "size": LINEAR.apply(state, draw, inputs["x"])[:, :1] * inputs["scale"][:, None],
    },
)
COMBINED = heuristics.combine([heuristics.bald, heuristics.variance], [1, 2], outputs=["class", "size"])


def expected_logits(inputs, num_samples=DRAWS):
    """A loop in NumPy over the same keys."""
    noise = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.normal(key, STATE.shape)))(split(KEY, num_samples)))
    return np.stack([inputs @ (STATE + 0.5 * draw) for draw in noise])


split = jax.jit(jax.random.split, static_argnums=1)


def test_draws_lead_and_batches_and_order_change_no_number():
    # Cases 35 and 38; two inputs and outputs, and padding of batches. Equal rows meet equal draws, and draws equal a
    # loop over the same keys.
    order = np.random.default_rng(5).permutation(70)
    order[-1] = order[3]
    inputs = jax.tree.map(lambda leaf: leaf[order], TWO_INPUTS)
    logits = expected_logits(INPUTS)
    expected = {"class": logits, "size": logits[..., :1] * TWO_INPUTS["scale"][:, None]}
    expected = jax.tree.map(lambda leaf: leaf[:, order], expected)
    for batch_size in (1, 9, None):
        options = {"num_samples": DRAWS, "batch_size": batch_size}
        close(baal.predict(KEY, TWO_HEADS, STATE, inputs, **options), expected, rtol=1e-5)
        found = baal.score(KEY, TWO_HEADS, STATE, inputs, COMBINED, **options)
        close(found, COMBINED(expected), rtol=1e-3, atol=1e-5)
    # One draw keeps its axis.
    close(baal.predict(KEY, LINEAR, STATE, INPUTS, num_samples=1), expected_logits(INPUTS, 1), rtol=1e-5)


def test_evaluation_weighs_every_example_alike_and_averages_probabilities():
    """Classification of integer targets, regression of others, or what is asked for."""
    # Cases 41 and 52.
    logits, targets = expected_logits(INPUTS), np.arange(SIZE) % CLASSES
    targets[3] = -1
    average = lambda logits, targets: metrics.classification().compute(metrics.model_average(logits), targets)  # noqa: E731
    real = np.random.default_rng(2).normal(size=(SIZE, CLASSES)).astype(np.float32)
    chosen = metrics.MetricSet(lambda p: p.logits[0, :, 0], lambda rows, targets: {"sum": rows.sum() + targets.sum()})
    for given, metric_set, expected in (
        (targets, None, jax.jit(average)(logits, targets)),
        (real, None, {"rmse": np.sqrt(np.mean((logits.mean(0) - real) ** 2))}),
        (real, chosen, {"sum": logits[0, :, 0].sum() + real.sum()}),
    ):
        options = {"metrics": metric_set, "num_samples": DRAWS, "batch_size": 7}
        found = baal.evaluate(KEY, LINEAR, STATE, baal.Dataset(INPUTS, given), **options)
        close({name: found[name] for name in expected}, expected)
        assert found.keys() == expected.keys() or given is real


def test_twenty_draws_are_taken_in_batches_of_256_where_nothing_is_said():
    """Everywhere: in predictions, scores, evaluations, both streams and loops; a remainder does not compile again."""
    shapes, rows = [], np.zeros((300, 2), np.float32)

    def apply(state, draw, inputs):
        shapes.append(inputs.shape[0])
        return inputs + draw

    def sample(key, state, num_samples):
        shapes.append(f"{num_samples} draws")
        return jnp.zeros(num_samples)

    posterior = SPY._replace(sample=sample, apply=apply)
    dataset = baal.Dataset(rows, np.zeros(300, np.int32))
    loop = baal.active_loop(posterior, baal.selection.top_k(heuristics.margin), query_size=1)
    state = loop.init(KEY, dataset)
    given = KEY, posterior, None
    for call, batch in (
        (lambda: baal.predict(*given, rows), 150),
        (lambda: baal.score(*given, rows, heuristics.margin), 150),
        (lambda: baal.evaluate(*given, dataset), 150),
        (lambda: list(baal.predict_stream(*given, rows)), 256),
        (lambda: baal.score_stream(*given, rows, heuristics.margin), 256),
        (lambda: jax.eval_shape(loop.step, state, dataset), 150),
        (lambda: jax.eval_shape(loop.predict, state, rows), 150),
        (lambda: jax.eval_shape(loop.evaluate, state, dataset), 150),
    ):
        shapes.clear()
        call()
        assert set(shapes) - {1, "1 draws"} == {"20 draws", batch}  # and one for the shape of an output
    shapes.clear()
    list(baal.predict_stream(KEY, posterior, None, rows[:17]))  # as the last batch of all
    assert not shapes


def test_arguments_that_make_no_sense_are_refused():
    call = {"key": KEY, "posterior": LINEAR, "state": STATE, "inputs": INPUTS}
    for message, arguments in {
        "num_samples=0": {"num_samples": 0},
        "batch_size=0": {"batch_size": 0},
        r"batch_size=2\.5": {"batch_size": 2.5},
        "typed key": {"key": jax.random.PRNGKey(0)},
        "one common leading axis": {"inputs": {"x": INPUTS, "scale": INPUTS[:3]}},
    }.items():
        for function in (baal.predict, partial(baal.score, score_fn=heuristics.bald)):
            with pytest.raises(ValueError, match=message):
                function(**call | arguments)
    with pytest.raises(ValueError, match=r"72 inputs, but targets of shape \(3"):
        baal.evaluate(KEY, LINEAR, STATE, baal.Dataset(INPUTS, np.zeros(3, int)))
