"""Prediction in batches: the same numbers. On several devices: contracts/test_posteriors; of sources: test_sources."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import heuristics, metrics, prediction
from baal_jax.data import View
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
        (lambda: baal.score(*given, View(rows), heuristics.margin), 256),
        (lambda: jax.eval_shape(loop.step, state, dataset), 150),
        (lambda: jax.eval_shape(loop.predict, state, rows), 150),
        (lambda: jax.eval_shape(loop.evaluate, state, dataset), 150),
    ):
        shapes.clear()
        call()
        assert set(shapes) - {1, "1 draws", "20 draws"} == {batch}  # and one for the shape of an output
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


def counted(calls, name, out):
    """Notes down that the device computes ``out``."""
    jax.debug.callback(lambda _: calls.append(name), jax.tree.leaves(out)[0])
    return out


def test_of_a_source_draws_and_what_they_say_of_targets_are_computed_once():
    """SWAG estimates batch statistics for every draw, which takes as long as predicting."""
    calls, rows, targets = [], np.arange(40, dtype=np.float32)[:, None] * np.ones(3, np.float32), np.ones((7, 3), "f4")
    posterior = baal.Posterior(
        fit=lambda key, dataset, labelled, previous=None: jnp.zeros(()),
        sample=lambda key, state, number: counted(calls, "sample", jax.random.normal(key, (number,))),
        apply=lambda state, draw, x: counted(calls, "targets", x * draw) if len(x) == 7 else x * draw,
    )
    dataset = baal.Dataset(View(rows), np.arange(40) % 3)
    given, options = (KEY, posterior, jnp.zeros(())), {"num_samples": 4, "batch_size": 16}
    loop = baal.active_loop(posterior, baal.selection.top_k_epig(), query_size=2, **options)
    state = loop.init(KEY, dataset, num_initial=2)
    for call, expected in (
        (lambda: list(baal.predict_stream(*given, dataset.inputs, **options)), ["sample"]),
        (lambda: baal.score(*given, dataset.inputs, heuristics.bald, **options), ["sample"]),
        (lambda: baal.evaluate(*given, dataset, metrics=baal.metrics.classification(), **options), ["sample"]),
        (lambda: loop.step(state, dataset, targets), ["sample", "targets"]),
    ):
        calls.clear()
        call()
        jax.effects_barrier()
        assert sorted(set(calls)) == expected
        assert calls.count("sample") == 1
        assert calls.count("targets") <= 4  # one a draw


def test_target_inputs_are_predicted_in_batches():
    def apply(state, draw, inputs):  # a wide hidden layer, which nothing fuses
        return jnp.sort(inputs @ (state + draw)) @ state.T

    def both(made):
        return made.logits[0, :, 0] + jnp.max(made.target_logits)

    def memory(batch_size):
        given = KEY, SPY._replace(apply=apply)
        options = {"num_samples": 2, "batch_size": batch_size}
        run = jax.jit(lambda state, x, y: prediction.summarise(*given, state, x, both, target_inputs=y, **options))
        program = run.lower(*(jax.ShapeDtypeStruct(shape, "f4") for shape in ((3, 1000), (8, 3), (4096, 3))))
        return program.compile().memory_analysis().temp_size_in_bytes

    assert memory(32) < 0.1 * memory(4096)
