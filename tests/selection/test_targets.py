"""Selections toward target inputs, against a Gaussian process in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import Predictions, data, selection
from baal_jax.selection.sets import selectors, transforms
from tests import fixtures
from tests.selection.problems import EVERY, NUM, QUERY, build, pick, problem

NOISE, TARGETS = 0.3, 6


def covariance(given, a, b, points):
    """Of a linear model, given noisy labels of some points."""
    a, b, points = (np.asarray(part, np.float64) for part in (a, b, points[given]))
    known = points @ points.T + NOISE**2 * np.eye(len(points))
    return a @ b.T - a @ points.T @ np.linalg.solve(known, points @ b.T)


def itl(given, x, points, targets):
    own, shared, theirs = (covariance(given, *pair, points) for pair in ((x, x), (x, targets), (targets, targets)))
    left = own - shared @ np.linalg.solve(theirs + NOISE**2 * np.eye(len(targets)), shared.T)
    return 0.5 * np.log((own[0, 0] + NOISE**2) / (left[0, 0] + NOISE**2))


def vtl(given, x, points, targets):
    own, shared = covariance(given, x, x, points), covariance(given, x, targets, points)
    return np.sum(shared**2) / (own[0, 0] + NOISE**2)


def epig(given, x, points, targets):
    own, shared = covariance(given, x, x, points), covariance(given, x, targets, points)
    before = np.diag(covariance(given, targets, targets, points)) + NOISE**2
    return np.mean(0.5 * np.log(before / (before - shared[0] ** 2 / (own[0, 0] + NOISE**2))))


def greedy(gain, points, targets, available, labelled):
    given, values = np.flatnonzero(labelled).tolist(), []
    for _ in range(QUERY):
        left = [i for i in np.flatnonzero(available) if i not in given]
        gains = [gain(given, points[[i]], points, targets) for i in left]
        given.append(left[int(np.argmax(gains))])
        values.append(max(gains))
    return given[-QUERY:], values


@pytest.mark.parametrize("gain", [itl, vtl, epig])
def test_gains_toward_targets_are_those_of_a_gaussian_process(gain):
    acquisition = selection.grid(selector=getattr(selectors, gain.__name__)(NOISE))
    for seed in range(4):
        points, available, labelled = problem(seed)
        targets = np.random.default_rng(seed).normal(size=(TARGETS, points.shape[1])).astype(np.float32)
        given = Predictions(None, points - 5, None, targets)
        found = baal.select(jax.random.key(0), acquisition, given, available, query_size=QUERY, labelled=labelled)
        picks, values = greedy(gain, points - 5, targets, available, labelled)
        assert found.indices.tolist() == picks
        np.testing.assert_allclose(found.scores, values, rtol=1e-3)


def test_bait_toward_targets_forward_alone_is_vtl():
    points, available, labelled = problem(1)
    given = Predictions(None, points - 5, None, points[:TARGETS] - 4)

    def picked(selector, given=given, steps=()):
        acquisition = selection.grid(transforms=steps, selector=selector)
        return baal.select(jax.random.key(0), acquisition, given, available, query_size=QUERY, labelled=labelled)

    fixtures.same(picked(selectors.bait(NOISE, oversampling=1.0, toward_targets=True)), picked(selectors.vtl(NOISE)))
    # Transforms are of targets too; and targets that are the pool are what BAIT is toward without.
    doubled = given._replace(features=2 * given.features, target_features=2 * given.target_features)
    steps = (transforms.scale(),)
    first, second = (picked(selectors.vtl(NOISE), one, steps).indices for one in (given, doubled))
    np.testing.assert_array_equal(first, second)
    known = (points - 5)[available | labelled]
    toward = picked(selectors.bait(NOISE, toward_targets=True), given._replace(target_features=known))
    plain = build("bait", features=selection.sets.feature_maps.embedding, noise=NOISE)
    np.testing.assert_array_equal(toward.indices, pick(plain, points - 5, available, labelled).indices)


def test_a_loop_takes_its_target_inputs_from_arrays_and_from_a_source():
    train, test = fixtures.clouds()
    acquisition = selection.grid(selector=selectors.vtl())
    posterior = baal.posteriors.logistic_regression(3)
    own = lambda state, inputs: inputs  # noqa: E731
    options = {"query_size": 3, "num_samples": 4, "batch_size": 16, "features": own}
    loop = baal.active_loop(posterior, acquisition, **options)
    state = loop.init(jax.random.key(0), train, num_initial=4)
    _, info = loop.step(state, train, test.inputs)
    source = baal.Dataset(data.View(train.inputs), train.targets)
    fixtures.same(loop.step(state, source, test.inputs)[1].indices, info.indices)
    labelled = np.asarray(baal.pool.labelled(state.pool))
    given = Predictions(None, jnp.asarray(train.inputs), None, jnp.asarray(test.inputs))
    found = baal.select(jax.random.key(0), acquisition, given, ~labelled, query_size=3, labelled=labelled)
    fixtures.same(found.indices, info.indices)
    _, infos = baal.run(loop, None, train, test, state=state, num_rounds=2, target_inputs=test.inputs)
    fixtures.same(infos.indices[0], info.indices)
    with pytest.raises(ValueError, match="target_inputs is None, but this acquisition reads them"):
        loop.step(state, train)


def test_targets_are_kept_by_transforms_and_asked_for():
    points, available, labelled = problem(1)
    given = Predictions(None, points - 5, None, points[:TARGETS] - 4)
    own = lambda key, features, labelled, counted: selectors.Features(features.factors, features.noise)  # noqa: E731
    for selector in (selectors.itl(NOISE), selectors.bait(NOISE, toward_targets=True)):
        plain, mine = (selection.grid(transforms=steps, selector=selector) for steps in ((), (own,)))
        options = {"query_size": 3, "labelled": labelled}
        both = [baal.select(jax.random.key(0), one, given, available, **options).indices for one in (plain, mine)]
        np.testing.assert_array_equal(*both)
    for name in ("itl", "vtl", "epig"):
        with pytest.raises(ValueError, match="reads target inputs, and there are none"):
            pick(selection.grid(selector=getattr(selectors, name)()), points, EVERY, ~EVERY)
        with pytest.raises(ValueError, match=r"noise=0\.0 must be"):
            getattr(selectors, name)(0.0)
    with pytest.raises(ValueError, match="survivors keep no target inputs"):
        selection.survivors(selection.grid(selector=selectors.vtl(use_labelled=False), reads_labelled=False), 20)
    assert len(points) == NUM
