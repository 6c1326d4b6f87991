"""Semi-supervised fits: the papers' equations, what is read and what is not, and the contract of a trainer."""

import json
import sys
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import heuristics, posteriors, selection
from baal_jax.training import semi_supervised
from tests.oracles import semi_supervised as oracle
from tests.fixtures import same as assert_same, classes_data, first, regression_data

import semi_supervised_digits as digits

ALL = 20  # examples of classes_data


class Dropped(nn.Module):
    """Dropout and no batch statistics."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(3)(x)


class Normed(nn.Module):
    """Batch statistics of the inputs themselves, then dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class NormedNnx(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.dense = nnx.BatchNorm(4, momentum=0.9, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(self.norm(x)))


def times(factor):
    return lambda key, batch: batch._replace(inputs=jax.tree.map(lambda leaf: leaf * factor, batch.inputs))


def plus(offset):
    return lambda key, batch: batch._replace(inputs=batch.inputs + offset)


def noise(key, batch):
    return batch._replace(inputs=batch.inputs + jax.random.normal(key, batch.inputs.shape))


def linear(start):
    return baal.from_functions(lambda key, inputs: jnp.asarray(start), lambda params, inputs, key: inputs @ params)


@cache
def fit_of(model=Dropped, unlabelled=None, **options):
    options = {"num_steps": 5, "batch_size": 8, **options}
    make = baal.from_nnx(model) if issubclass(model, nnx.Module) else baal.from_linen(model())
    return baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, unlabelled=unlabelled, **options)(make)


PI = semi_supervised.pi_model(ramp_up=3, weight=10.0)
MATCH = semi_supervised.fix_match(noise, weight=2.0, threshold=0.3)


# The losses


@pytest.mark.parametrize("name", ["probability_difference", "squared_difference"])
@pytest.mark.parametrize("shape", [(7, 4), (3, 2, 4)])
def test_differences_follow_the_equation(name, shape):
    rng = np.random.default_rng(0)
    left, right = 3 * rng.normal(size=(2, *shape))
    expected = [getattr(oracle, name)(a, b) for a, b in zip(left.reshape(-1, 4), right.reshape(-1, 4), strict=True)]
    found = getattr(semi_supervised, name)(jnp.float32(left), jnp.float32(right))
    np.testing.assert_allclose(found, np.reshape(expected, shape[:-1]), rtol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(40, 3), (4, 10, 3)])
def test_fix_match_follows_the_equation(threshold, shape):
    rng = np.random.default_rng(1)
    weak, strong = 3 * rng.normal(size=(2, *shape))
    rows = list(zip(weak.reshape(-1, 3), strong.reshape(-1, 3), strict=True))
    expected = np.array([oracle.fix_match(a, b, threshold) for a, b in rows])
    found = semi_supervised.fix_match(noise, threshold=threshold).loss(jnp.float32(weak), jnp.float32(strong))
    np.testing.assert_allclose(found, expected.reshape(shape[:-1]), rtol=1e-4)
    if 0 < threshold < 1:
        assert 0 < np.count_nonzero(expected) < 40  # both cases were there


def test_a_probability_of_exactly_the_threshold_counts():
    loss = semi_supervised.fix_match(noise, threshold=0.5).loss
    np.testing.assert_allclose(loss(jnp.zeros((1, 2)), jnp.zeros((1, 2))), np.log(2), rtol=1e-6)


def test_logits_of_minus_infinity_give_finite_losses_and_gradients():
    certain = jnp.array([[0.0, -jnp.inf, -jnp.inf]])
    for loss in (PI.loss, MATCH.loss):
        value, slope = jax.value_and_grad(lambda second, loss=loss: jnp.sum(loss(certain, second)))(jnp.zeros((1, 3)))
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


def test_gradients_go_through_both_passes_of_the_pi_model_and_not_through_the_pseudo_label():
    left, right = jax.random.normal(jax.random.key(0), (2, 5, 3))
    slopes = {
        name: jax.grad(lambda a, b, loss=loss: jnp.sum(loss(a, b)), argnums=(0, 1))(left, right)
        for name, loss in (
            ("pi", PI.loss),
            ("pi_regression", semi_supervised.squared_difference),
            ("match", MATCH.loss),
        )
    }
    for name in ("pi", "pi_regression"):
        assert all(np.abs(slope).min(axis=1).max() > 1e-4 for slope in slopes[name])
    np.testing.assert_allclose(slopes["pi_regression"][0], -slopes["pi_regression"][1], rtol=1e-6)
    assert not np.any(slopes["match"][0])
    assert np.any(slopes["match"][1])


def test_the_ramp_is_the_papers_curve():
    steps = np.array([0, 1, 7, 19, 20, 21, 1000])
    found = [semi_supervised.gaussian_ramp(3.0, 20)(jnp.int32(step)) for step in steps]
    np.testing.assert_allclose(found, [oracle.ramp(step, 20, 3.0) for step in steps], rtol=1e-5)
    np.testing.assert_allclose(found[0], 3 * np.exp(-5), rtol=1e-5)
    assert float(semi_supervised.gaussian_ramp(3.0, 0)(jnp.int32(0))) == 3.0


# Whole fits


def pi_regression(num_steps, weight=2.0, **options):
    views = {"first": times(0.5), "second": times(2.0)}
    consistency = semi_supervised.pi_model(ramp_up=6, distance=semi_supervised.squared_difference)._replace(
        weight=semi_supervised.gaussian_ramp(weight, 6), **views
    )
    return baal.trainer(
        optax.sgd(0.05), baal.losses.squared_error, batch_size=5, unlabelled=consistency, unlabelled_batch_size=12,
        num_steps=num_steps, **options,
    )(linear(np.full((3, 1), 0.5, np.float32)))  # fmt: skip


def test_a_pi_model_fit_is_gradient_descent_on_the_papers_loss(key):
    data, labelled = regression_data(), first(5)
    state = pi_regression(8)(key, data, labelled)
    expected, losses = oracle.pi_regression(
        data.inputs, data.targets, labelled, 8, 0.05, 0.5, length=6, weight=2.0, factors=(0.5, 2.0)
    )
    np.testing.assert_allclose(state.variables.params[:, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(state.loss, np.mean(losses), rtol=1e-4)


def test_a_warm_start_does_not_begin_the_ramp_again(key):
    data, labelled = regression_data(), first(5)
    fit = pi_regression(4, warm_start=True)
    state = fit(jax.random.key(1), data, labelled, fit(key, data, labelled))
    expected = oracle.pi_regression(data.inputs, data.targets, labelled, 8, 0.05, 0.5, 6, 2.0, (0.5, 2.0))[0]
    np.testing.assert_allclose(state.variables.params[:, 0], expected, rtol=1e-4)
    assert int(state.steps) == 8


def test_a_fix_match_fit_is_gradient_descent_on_the_papers_loss(key):
    data, labelled = classes_data(), first(6, ALL)
    start = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    consistency = semi_supervised.fix_match(times(0.7), times(1.5), weight=0.5, threshold=0.8)
    trainer = baal.trainer(
        optax.sgd(0.1), baal.losses.cross_entropy, num_steps=6, batch_size=6, unlabelled=consistency,
        unlabelled_batch_size=ALL,
    )  # fmt: skip
    state = trainer(linear(start))(key, data, labelled)
    expected, sure = oracle.fix_match_classifier(
        data.inputs, data.targets, labelled, 6, 0.1, start, weight=0.5, threshold=0.8, factors=(1.5, 0.7)
    )
    assert 0 < min(sure) <= max(sure) < ALL  # the threshold decides something
    np.testing.assert_allclose(state.variables.params, expected, rtol=1e-4, atol=1e-5)


def test_a_fit_can_be_differentiated_by_unlabelled_inputs_and_by_the_weight(key):
    data, labelled = regression_data(), first(5)

    def total(weight, scale):
        inputs = jnp.where(labelled[:, None], data.inputs, data.inputs * scale)
        return jnp.sum(pi_regression(3, weight)(key, data._replace(inputs=inputs), labelled).variables.params)

    def expected(weight, scale):
        inputs = np.where(np.asarray(labelled)[:, None], data.inputs, np.asarray(data.inputs, np.float64) * scale)
        return oracle.pi_regression(inputs, data.targets, labelled, 3, 0.05, 0.5, 6, weight, (0.5, 2.0))[0].sum()

    slopes, step = jax.grad(total, argnums=(0, 1))(2.0, 1.0), 1e-5
    by_weight = (expected(2.0 + step, 1.0) - expected(2.0 - step, 1.0)) / (2 * step)
    by_scale = (expected(2.0, 1.0 + step) - expected(2.0, 1.0 - step)) / (2 * step)
    np.testing.assert_allclose(slopes, (by_weight, by_scale), rtol=1e-3)


@pytest.mark.parametrize("length", [{"num_steps": 5}, {"num_steps": None, "num_epochs": 3}], ids=["steps", "epochs"])
def test_with_a_weight_of_zero_nothing_is_learnt_from_the_unlabelled(length, key):
    # The dropout masks of the labelled rows are the first ones of a larger batch, so the fit is the supervised one.
    data, labelled = classes_data(), first(9, ALL)
    supervised = fit_of(**length)(key, data, labelled)
    ignored = fit_of(unlabelled=semi_supervised.pi_model(ramp_up=0, weight=0.0), **length)(key, data, labelled)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ignored, supervised)
    used = fit_of(unlabelled=PI, **length)(key, data, labelled)
    assert int(used.steps) == int(supervised.steps) == (5 if length["num_steps"] else 4)  # ceil(3 · 9 / 8)
    kernels = [state.variables.params["Dense_0"]["kernel"] for state in (used, supervised)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


@pytest.mark.parametrize("unlabelled", [PI, MATCH], ids=["pi_model", "fix_match"])
def test_targets_of_the_unlabelled_are_never_read_and_their_inputs_are(unlabelled, key):
    data, labelled = classes_data(), jnp.arange(ALL) % 3 == 1
    fit = fit_of(unlabelled=unlabelled)
    state = fit(key, data, labelled)
    for poison in (-1, -7, 2, 10**6):
        assert_same(fit(key, data._replace(targets=jnp.where(labelled, data.targets, poison)), labelled), state)
    moved = data._replace(inputs=jnp.where(labelled[:, None], data.inputs, -data.inputs))
    other = fit(key, moved, labelled).variables.params["Dense_0"]["kernel"]
    assert np.abs(other - state.variables.params["Dense_0"]["kernel"]).max() > 1e-4


def test_unknown_regression_targets_may_be_nan(key):
    data, labelled = regression_data(), first(5)
    hidden = data._replace(targets=jnp.where(labelled, data.targets, jnp.nan))
    state = pi_regression(4)(key, hidden, labelled)
    assert_same(state, pi_regression(4)(key, data, labelled))
    assert np.isfinite(state.loss)


def test_every_pass_reads_every_example_once_and_goes_on(key):
    # One parameter an example: the gradient of the sum of the first view counts how often it was read.
    model = baal.from_functions(lambda key, ids: jnp.zeros(9), lambda params, ids, key: params[ids][:, None])
    count = optax.stateless(lambda grads, params: grads)
    consistency = semi_supervised.Consistency(lambda a, b: a[:, 0] * 3.0, lambda steps: 1.0, first=lambda key, x: x)
    consistency = consistency._replace(second=consistency.first)
    trainer = baal.trainer(
        count, lambda outputs, targets: 0.0 * outputs[:, 0], num_steps=12, batch_size=2, unlabelled=consistency,
        unlabelled_batch_size=3,
    )  # fmt: skip
    state = trainer(model)(key, baal.Dataset(jnp.arange(9), jnp.zeros(9)), first(2, 9))
    np.testing.assert_allclose(state.variables.params, np.full(9, 4.0), rtol=1e-6)  # 12 · 3 / 9


@pytest.mark.parametrize("unlabelled", [PI, MATCH], ids=["pi_model", "fix_match"])
def test_with_everything_labelled_all_is_finite_and_with_nothing_labelled_nothing_is_learnt(unlabelled, key):
    data, fit = classes_data(), fit_of(unlabelled=unlabelled)
    everything = fit(key, data, first(ALL, ALL))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(everything))
    assert float(everything.loss) > 0
    nothing = fit(key, data, first(0, ALL))
    assert float(nothing.loss) == 0
    start = baal.from_linen(Dropped()).init(jax.random.split(key, 4)[0], data.inputs[:1])
    assert_same(nothing.variables.params, start.params)
    assert fit._cache_size() == 1  # nor does a growing labelled set compile again


@pytest.mark.parametrize(("model", "options"), [(NormedNnx, {}), (Normed, {"average_from": 0.4})])
def test_batch_statistics_come_from_the_labelled_and_from_the_first_view(model, options, key):
    data, labelled = classes_data(), first(8, ALL)
    consistency = PI._replace(first=plus(1.0), second=plus(50.0))
    fit = fit_of(model, consistency, augment=plus(-2.0), unlabelled_batch_size=ALL, **options)
    collections = fit(key, data, labelled).variables.collections
    leaves = [leaf for leaf in jax.tree.leaves(collections) if leaf.shape == (4,)]
    mean, var = leaves
    inputs = np.asarray(data.inputs, np.float64)
    rows = np.concatenate([inputs[:8] - 2.0, inputs + 1.0])
    seen = 1.0 if options else 1 - 0.9**5  # statistics of averaged weights forget where they began
    np.testing.assert_allclose(mean, seen * rows.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(var, 1 - seen + seen * rows.var(0), rtol=1e-3, atol=1e-3)


def test_views_take_the_trainers_augmentation_unless_they_have_their_own(key):
    seen = []

    def spy(name):
        def augment(key, batch):
            seen.append((name, batch.inputs.shape, batch.targets is None))
            return batch

        return augment

    for consistency in (PI, PI._replace(first=spy("first")), semi_supervised.fix_match(spy("strong"), spy("weak"))):
        fit = baal.trainer(
            optax.sgd(0.1), baal.losses.cross_entropy, num_steps=1, batch_size=8, unlabelled=consistency,
            unlabelled_batch_size=3, augment=spy("own"),
        )(baal.from_linen(Dropped()))  # fmt: skip
        jax.eval_shape(fit, key, classes_data(), first(8, ALL))
    own, views = ("own", (8, 4), False), (3, 4)
    assert seen.count(own) == 3 * (len(seen) // 9)
    assert set(seen) == {own, *((name, views, True) for name in ("own", "first", "weak", "strong"))}
    counts = {name: seen.count((name, views, True)) for name in ("own", "first", "weak", "strong")}
    assert counts == {name: times * (len(seen) // 9) for name, times in zip(counts, (3, 1, 1, 1), strict=True)}


def test_inputs_may_be_a_tree(key):
    data, labelled = regression_data(), first(5)
    tree = data._replace(inputs={"left": data.inputs[:, :2], "right": data.inputs[:, 2:]})
    consistency = semi_supervised.pi_model(ramp_up=0, distance=semi_supervised.squared_difference, weight=1.0)

    def apply(params, inputs, key):
        joined = jnp.concatenate([inputs["left"], inputs["right"]], axis=1)
        return (joined * jax.random.uniform(key, joined.shape)) @ params

    def fit(apply, data):
        model = baal.from_functions(lambda key, inputs: jnp.full((3, 1), 0.5), apply)
        trainer = baal.trainer(optax.sgd(0.05), baal.losses.squared_error, num_steps=3, unlabelled=consistency)
        return trainer(model)(key, data, labelled)

    flat = fit(lambda params, x, key: apply(params, {"left": x[:, :2], "right": x[:, 2:]}, key), data)
    assert_same(fit(apply, tree), flat)


# Keys


def test_all_keys_of_a_fit_differ():
    seen = []

    def record(key):
        jax.debug.callback(lambda words: seen.append(tuple(np.asarray(words).tolist())), jax.random.key_data(key))

    def init(key, inputs):
        record(key)
        return jnp.ones((4, 3))

    def apply(params, inputs, key):
        record(key)
        return inputs @ params

    def augment(key, batch):
        record(key)
        return batch

    fit = baal.trainer(
        optax.sgd(0.1), baal.losses.cross_entropy, num_steps=4, batch_size=8, augment=augment, unlabelled=PI
    )(baal.from_functions(init, apply))  # fmt: skip
    jax.block_until_ready(fit(jax.random.key(5), classes_data(), first(9, ALL)))
    jax.effects_barrier()
    assert len(seen) == 1 + 4 * (3 + 2)  # the start; three augmentations and two passes a step
    assert len(set(seen)) == len(seen)


def test_no_key_is_used_twice(key, key_reuse):
    for unlabelled, key_fit in zip((PI, MATCH), jax.random.split(key), strict=True):
        trainer = baal.trainer(
            optax.sgd(0.1), baal.losses.cross_entropy, num_steps=2, unlabelled=unlabelled, augment=noise
        )
        state = trainer(baal.from_linen(Dropped()))(key_fit, classes_data(), first(9, ALL))
        assert np.isfinite(state.loss)


def test_keys_decide_and_vmap_over_them_is_a_loop(key):
    data, labelled = classes_data(), first(9, ALL)
    fit, keys = fit_of(unlabelled=PI), jax.random.split(key, 3)
    mapped = jax.vmap(lambda key: fit(key, data, labelled))(keys)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[fit(key, data, labelled) for key in keys])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), mapped, stacked)
    kernels = stacked.variables.params["Dense_0"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1], atol=1e-2)


# In the loop


def test_it_works_in_the_active_loop(key):
    data = classes_data()
    trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=4, batch_size=4, unlabelled=PI)
    posterior = posteriors.mc_dropout(baal.from_linen(Normed()), trainer)
    loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=3, num_samples=4)
    # The loop trains on what it labelled: the other targets may be anything.
    start = loop.init(key, data, num_initial=3)
    hidden = data._replace(targets=jnp.where(baal.pool.labelled(start.pool), data.targets, -1))
    state, infos = baal.run(loop, key, data, data, num_initial=3, num_rounds=3)
    np.testing.assert_array_equal(infos.num_labelled, [3, 6, 9])
    assert np.isfinite(infos.metrics["nll"]).all()
    assert len(set(np.ravel(infos.indices).tolist())) == 9
    assert int(state.posterior.steps) == 4
    np.testing.assert_array_equal(loop.step(start, hidden)[1].indices, infos.indices[0])


# Refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: semi_supervised.pi_model(ramp_up=-1), "ramp_up=-1"),
        (lambda: semi_supervised.pi_model(ramp_up=2.5), "ramp_up=2.5"),
        (lambda: semi_supervised.pi_model(ramp_up=1, weight=-1.0), "weight=-1.0"),
        (lambda: semi_supervised.pi_model(ramp_up=1, weight=float("nan")), "weight=nan"),
        (lambda: semi_supervised.fix_match(noise, threshold=1.5), "threshold=1.5"),
        (lambda: semi_supervised.fix_match(noise, threshold=-0.5), "threshold=-0.5"),
        (lambda: semi_supervised.fix_match(noise, weight=float("inf")), "weight=inf"),
        (lambda: semi_supervised.fix_match(0.5), "strong=0.5"),
        (lambda: fit_of(unlabelled=True), "unlabelled=True must be made by"),
        (lambda: fit_of(unlabelled_batch_size=4), "unlabelled_batch_size=4 without unlabelled"),
        (lambda: fit_of(unlabelled=PI, unlabelled_batch_size=0), "unlabelled_batch_size=0"),
    ],
)
def test_bad_arguments_are_refused_where_they_are_given(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("unlabelled", "outputs", "message"),
    [
        (PI, 3, "does not depend on the key and nothing is augmented"),
        (PI._replace(second=noise, loss=lambda a, b: jnp.mean(a)), 3, "leave out the mean"),
        (PI._replace(first=lambda key, x: x._replace(inputs=x.inputs > 0)), 3, "let both return the same"),
        (PI._replace(second=noise), 1, "single class.*squared_difference"),
        (semi_supervised.fix_match(noise), 1, "single class.*binary_logits"),
    ],
)
def test_what_cannot_work_is_refused_when_the_fit_is_traced(unlabelled, outputs, message, key):
    trainer = baal.trainer(optax.sgd(0.1), lambda outputs, targets: outputs[:, 0], num_steps=1, unlabelled=unlabelled)
    with pytest.raises(ValueError, match=message):
        trainer(linear(np.ones((4, outputs), np.float32)))(key, classes_data(), first(9, ALL))


# The experiment


@pytest.mark.parametrize("active", [False, True], ids=["sizes", "active"])
def test_the_experiment_writes_tables_a_picture_and_results(active, tmp_path, capsys):
    methods = ("pi_model",) if active else ("supervised", "fix_match")
    config = digits.Config(
        methods=methods, labels=(10, 20), active=active, model="mlp", seeds=2, num_steps=2, rounds=2, num_samples=2,
        unlabelled_batch_size=8, out=tmp_path,
    )  # fmt: skip
    curves = digits.main(config)
    assert list(curves) == (["pi_model, random", "pi_model, bald"] if active else list(methods))
    for curve in curves.values():
        assert curve.metrics["accuracy"].shape == (2, 2)
        np.testing.assert_array_equal(curve.num_labelled, [20, 30] if active else [10, 20])
    if not active:  # nothing is certain after two steps, so FixMatch is the supervised fit: the seeds are paired
        accuracies = [curve.metrics["accuracy"] for curve in curves.values()]
        np.testing.assert_allclose(*accuracies, atol=1 / 360 + 1e-6)
    assert "points ± s.e. of the paired difference" in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "results.json").read_text())["strategies"]) == len(curves)


def test_labels_of_the_experiment_are_nested_and_balanced():
    targets = jnp.arange(200) % 10
    order = digits.labelling_order(targets, digits.Config(), 0)
    np.testing.assert_array_equal(np.sort(order), np.arange(200))
    for count in (10, 50):
        assert np.bincount(np.asarray(targets)[order < count]).tolist() == [count // 10] * 10
    assert np.any(digits.labelling_order(targets, digits.Config(), 1) != order)
    at_random = digits.labelling_order(targets, digits.Config(balanced=False), 0)
    assert np.bincount(np.asarray(targets)[at_random < 50], minlength=10).tolist() != [5] * 10
