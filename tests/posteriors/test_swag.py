"""SWAG: moments of the iterates, the Gaussian that is drawn from, and batch statistics of every draw."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import heuristics, losses, selection
from baal_jax.posteriors._swag import swag
from tests.oracles import swag as oracle
from tests.fixtures import first, regression_data
from tests.training.test_averaging import NormAfterDense, trajectory

STEPS, RATE, START = 12, 0.2, 1.5
DATA = regression_data()


def two_leaves(start=START):
    """A linear function whose weights stand in two arrays."""

    def init(key, inputs):
        return {"a": jnp.full((1, 1), start), "b": jnp.full((2, 1), start)}

    return baal.from_functions(init, lambda params, inputs, key: inputs @ flat(params)[:, None])


def flat(params):
    return jnp.concatenate([params["a"], params["b"]], axis=-2)[..., 0]


def draws(posterior, key, state, num_samples):
    return jax.jit(posterior.sample, static_argnums=2)(key, state, num_samples)


def trainer(optimizer=None, **options):
    optimizer = optax.sgd(RATE) if optimizer is None else optimizer
    options = {"num_steps": STEPS, "batch_size": 12} | options
    return baal.trainer(optimizer, losses.squared_error, **options)


def iterates(num_steps=STEPS):
    return trajectory(DATA.inputs, DATA.targets, num_steps, RATE, START)


@pytest.fixture(scope="module")
def fitted():
    """Six snapshots, four deviations."""
    posterior = swag(two_leaves(), trainer(), rank=4, start=0.5, every=1)
    return posterior, posterior.fit(jax.random.key(0), DATA, first(12))


@pytest.mark.parametrize(
    ("rank", "start", "every", "count"),
    [(4, 0.5, 1, 6), (4, 0.5, 2, 3), (3, 0.0, 1, 12), (2, 0.0, 5, 3), (0, 0.25, 4, 3), (8, 0.75, None, 3)],
)
@pytest.mark.parametrize("length", [{"num_steps": STEPS}, {"num_epochs": STEPS, "num_steps": None}], ids=str)
def test_moments_of_the_iterates(rank, start, every, count, length):
    posterior = swag(two_leaves(), trainer(**length), rank, start=start, every=every)
    state = posterior.fit(jax.random.key(0), DATA, first(12))
    seen = oracle.snapshots(iterates(), start, every or 1)
    mean, variance, deviations = oracle.moments(seen, rank)
    assert int(state.moments.num_snapshots) == count == len(seen)
    np.testing.assert_allclose(flat(state.moments.mean), mean, rtol=1e-5)
    np.testing.assert_allclose(flat(state.variables.params), mean, rtol=1e-5)
    np.testing.assert_allclose(flat(state.moments.squares) / count, variance, rtol=1e-4)
    if rank == 0:
        assert state.moments.deviations is None
        return
    ring = np.zeros((rank, 3))
    for i, deviation in enumerate(deviations, start=count - len(deviations)):
        ring[i % rank] = deviation
    np.testing.assert_allclose(flat(state.moments.deviations), ring, rtol=1e-4, atol=1e-5 * np.abs(ring).max())


@pytest.mark.parametrize(("steps", "rank", "count"), [(400, 0, 20), (236, 4, 30), (400, 30, 34), (8, 20, 2)])
def test_snapshots_by_default(steps, rank, count):
    posterior = swag(two_leaves(), trainer(num_steps=steps), rank)
    assert int(posterior.fit(jax.random.key(0), DATA, first(12)).moments.num_snapshots) == count


def test_the_mean_does_not_hold_the_initial_weights():
    to_zero = optax.stateless(lambda updates, params: jax.tree.map(jnp.negative, params))
    posterior = swag(two_leaves(1e3), trainer(to_zero), rank=2, start=0.0, every=1)
    state = posterior.fit(jax.random.key(0), DATA, first(12))
    assert int(state.moments.num_snapshots) == STEPS
    for leaf in jax.tree.leaves((state.moments.mean, state.moments.squares, state.moments.deviations)):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize(("rank", "scale"), [(4, 1.0), (4, 0.5), (8, 1.0), (0, 1.0)])
def test_draws_have_mean_and_covariance_of_the_gaussian(rank, scale, fitted):
    posterior = swag(two_leaves(), trainer(), rank, start=0.5, every=1, scale=scale)
    state = fitted[1] if rank == 4 else posterior.fit(jax.random.key(0), DATA, first(12))
    drawn = np.asarray(flat(draws(posterior, jax.random.key(1), state, 40_000).params), np.float64)
    seen = oracle.snapshots(iterates(), 0.5, 1)
    expected = oracle.covariance(seen, rank, scale)
    unit = np.sqrt(np.diag(expected))
    found = np.cov(drawn.T) / np.outer(unit, unit)
    expected = expected / np.outer(unit, unit)
    np.testing.assert_allclose(found, expected, atol=0.03)  # four standard errors
    np.testing.assert_allclose((drawn.mean(axis=0) - seen.mean(axis=0)) / unit, 0, atol=0.02)
    if rank:
        assert np.abs(expected[0, 1:]).max() > 0.2  # the two arrays go together


def test_more_draws_keep_the_first(fitted):
    posterior, state = fitted
    few, many = (flat(draws(posterior, jax.random.key(1), state, num).params) for num in (2, 5))
    np.testing.assert_allclose(few, many[:2], rtol=1e-6)
    assert len(np.unique(np.asarray(many)[:, 0])) == 5


def test_without_scale_it_is_stochastic_weight_averaging(key):
    posterior = swag(two_leaves(), trainer(batch_size=4), rank=4, start=0.5, every=1, scale=0)
    state = posterior.fit(key, DATA, first(12))
    averaged = trainer(batch_size=4, average_from=0.5)(two_leaves())(jax.random.split(key, 3)[0], DATA, first(12))
    drawn = flat(draws(posterior, key, state, 3).params)
    np.testing.assert_array_equal(drawn, jnp.broadcast_to(flat(state.variables.params), drawn.shape))
    np.testing.assert_allclose(drawn[0], flat(averaged.variables.params), rtol=1e-5)


def test_a_warm_start_gathers_anew(key):
    posterior = swag(two_leaves(), trainer(warm_start=True), rank=4, start=0.5, every=1)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(posterior.fit, key, DATA, first(12))
    )
    once = posterior.fit(key, DATA, first(12), zeros)
    twice = posterior.fit(key, DATA, first(12), once)
    np.testing.assert_allclose(flat(once.moments.mean), iterates()[6:].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(flat(twice.moments.mean), iterates(24)[18:].mean(axis=0), rtol=1e-5)
    assert (int(twice.steps), int(twice.moments.num_snapshots)) == (24, 6)


def test_moments_are_float32_and_draws_as_the_parameters(key):
    model = baal.from_linen(nn.Dense(1, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    posterior = swag(model, trainer(), rank=3, start=0.5)
    state = posterior.fit(key, DATA, first(12))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.moments)[2:]} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(draws(posterior, key, state, 2))} == {jnp.dtype(jnp.bfloat16)}


def test_fits_map_over_keys_and_differentiate(key):
    posterior = swag(two_leaves(), trainer(batch_size=4), rank=3, start=0.5)
    keys = jax.random.split(key, 2)
    mapped = jax.jit(jax.vmap(lambda key: posterior.fit(key, DATA, first(12))))(keys)
    alone = posterior.fit(keys[1], DATA, first(12))
    jax.tree.map(lambda one, many: np.testing.assert_allclose(many[1], one, rtol=1e-4, atol=1e-6), alone, mapped)
    constant = DATA._replace(inputs=DATA.inputs.at[:, 0].set(0))  # the first weight has no variance

    def drawn(factor):
        state = posterior.fit(key, constant._replace(targets=DATA.targets * factor), first(12))
        return jnp.sum(flat(draws(posterior, key, state, 1).params))

    np.testing.assert_allclose(jax.grad(drawn)(1.0), (drawn(1.01) - drawn(0.99)) / 0.02, rtol=2e-2)


def test_the_ring_is_written_in_place():
    model = baal.from_linen(nn.Dense(64))
    data = baal.Dataset(jnp.zeros((4, 64)), jnp.zeros((4, 64)))

    def temporary(rank):
        posterior = swag(model, trainer(batch_size=2), rank, start=0.0, every=1)
        lowered = posterior.fit.lower(jax.random.key(0), data, first(4, 4))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) - temporary(2) < 10 * 64 * 64 * 4  # a copy would be 62


def test_every_draw_has_its_own_batch_statistics(key):
    rng = np.random.default_rng(0)
    data = baal.Dataset(jnp.asarray(rng.normal(size=(24, 4)), jnp.float32), jnp.arange(24) % 3)
    fit_options = {"num_steps": 20, "batch_size": 8}
    model = baal.from_linen(NormAfterDense(0.9))
    posterior = swag(
        model, baal.trainer(optax.sgd(0.5), losses.cross_entropy, **fit_options), rank=4, start=0.5, every=1, scale=4.0
    )
    state = posterior.fit(key, data, first(16, 24))
    drawn = draws(posterior, jax.random.key(1), state, 3)
    labelled = np.asarray(data.inputs[:16], np.float64)
    for variables in (state.variables, *(jax.tree.map(lambda leaf, i=i: leaf[i], drawn) for i in range(3))):
        kernel, bias = (np.asarray(variables.params["Dense_0"][name], np.float64) for name in ("kernel", "bias"))
        hidden = np.maximum(labelled @ kernel + bias, 0)
        statistics = variables.collections["batch_stats"]["BatchNorm_0"]
        np.testing.assert_allclose(statistics["mean"], hidden.mean(axis=0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(statistics["var"], hidden.var(axis=0), rtol=1e-3, atol=1e-4)
        outputs = posterior.apply(state, variables, data.inputs)
        np.testing.assert_allclose(posterior.apply(state, variables, data.inputs[5:6]), outputs[5:6], rtol=1e-5)
    means = np.asarray(drawn.collections["batch_stats"]["BatchNorm_0"]["mean"])
    assert np.abs(means[0] - means[1]).max() > 1e-2
    assert state.inputs.shape == (8, 64, 4)


def test_inputs_are_kept_for_batch_statistics_alone(fitted):
    assert fitted[1].inputs is None


def test_an_epoch_of_no_examples_leaves_the_weights(key):
    posterior = swag(two_leaves(), trainer(num_steps=None, num_epochs=3), rank=2)
    state = posterior.fit(key, DATA, first(0))
    np.testing.assert_allclose(flat(draws(posterior, key, state, 2).params), START)


def test_it_runs_in_the_loop(key):
    data = baal.Dataset(DATA.inputs, DATA.targets)
    posterior = swag(baal.from_linen(nn.Dense(1)), trainer(), rank=2, start=0.5)
    loop = baal.active_loop(posterior, selection.top_k(heuristics.variance), query_size=2, num_samples=3)
    final, infos = baal.run(loop, key, data, data, num_initial=4, num_rounds=2)
    assert int(baal.pool.num_labelled(final.pool)) == 8
    assert all(np.isfinite(values).all() for values in infos.metrics.values())
    assert int(final.posterior.moments.num_snapshots) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "rank=-1"),
        ({"rank": 1}, "rank=1 is no covariance"),
        ({"start": 1.0}, "start=1.0"),
        ({"every": 0}, "every=0"),
        ({"scale": -1.0}, "scale=-1.0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        swag(two_leaves(), trainer(), **options)


def test_a_single_snapshot_is_refused(key):
    with pytest.raises(ValueError, match="every=3 leave 1 snapshot in 12 steps"):
        swag(two_leaves(), trainer(), every=3).fit(key, DATA, first(12))
    average = swag(two_leaves(), trainer(), every=3, scale=0).fit(key, DATA, first(12))
    np.testing.assert_allclose(flat(average.variables.params), iterates()[-1], rtol=1e-5)
