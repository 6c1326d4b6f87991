"""Herding and ProbCover, which cover a pool, and selections by what draws or classes disagree about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import Predictions, selection
from baal_jax.selection import _coverage
from tests.oracles import unsupervised as oracle
from tests.selection import problems
from tests.selection.problems import EVERY, NUM, QUERY, SEEDS, build, pick

pure_radius = jax.jit(_coverage.pure_radius, static_argnums=3)
RBF = {width: lambda squared, width=width: jnp.exp(-squared / width**2) for width in (0.3, 1.0)}

# ProbCover


@pytest.mark.parametrize(("num", "query_size", "radius"), [(48, QUERY, 1.5), (48, QUERY, 20.0), (400, 60, 1.5)])
def test_prob_cover_is_greedy_maximum_coverage(num, query_size, radius):
    """Also when all is covered, which the larger radius does, and when many points are worked through in blocks."""
    for seed in SEEDS if num == 48 else [1]:
        points, available, labelled = problems.problem(seed, num)
        found = pick(build("prob_cover", radius=radius), points, available, labelled, query_size)
        picks, values = oracle.prob_cover(points, available, labelled, query_size, radius)
        assert found.indices.tolist() == picks
        assert found.scores.tolist() == values
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2).astype(np.float32) + 0.1
    found = pick(build("prob_cover", radius=1.0), grid, EVERY[:25], ~EVERY[:25], 1)
    assert (found.indices.tolist(), found.scores.tolist()) == ([6], [5.0])  # a ball holds its boundary


def test_the_radius_is_the_largest_that_is_pure_enough():
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        known = available | labelled
        _, assignment, centred = problems.clusters_of(points, known, 4, 4, seed)
        radius = oracle.pure_radius(points, known, assignment, 0.75) * (1 - 1e-4)
        found = pure_radius(centred.astype(np.float32), known, assignment, 0.75)
        np.testing.assert_allclose(found, radius, rtol=1e-5)
        found = pick(build("prob_cover", purity=0.75, num_classes=4), points, available, labelled, key=seed)
        assert found.indices.tolist() == oracle.prob_cover(points, available, labelled, QUERY, radius)[0]
    # In floating point ``num · (1 − pure / num)`` is below the whole number that it is.
    for num, pure in ((22, 9), (38, 11), (38, 38)):
        line = np.concatenate([np.arange(num // 2) ** 1.1, 90 + np.arange(num - num // 2)])[:, None].astype(np.float32)
        classes, every = np.repeat([0, 1], [num // 2, num - num // 2]), np.ones(num, bool)
        found = pure_radius(line - line.mean(), every, classes, pure / num)
        np.testing.assert_allclose(found, oracle.pure_radius(line, every, classes, pure / num), rtol=2e-4)
    assert np.isinf(pure_radius(line, every, 0 * classes, pure / num))  # one class alone


# Herding


def similarities(points, width):
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit, np.exp(-(oracle.distances(unit, unit) ** 2) / width**2)


@pytest.mark.parametrize("width", RBF)
def test_herding_is_the_full_greedy_search(width):
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        unit, similarity = similarities(points - 5, width)
        weights = (available | labelled).astype(float)
        picks, values = oracle.herding(similarity, weights, available, labelled, QUERY)
        for given, normalise in ((points - 5, True), (unit, False)):
            acquisition = build("max_herding", kernel=RBF[width], normalise=normalise)
            found = pick(acquisition, given.astype(np.float32), available, labelled)
            assert found.indices.tolist() == picks
            np.testing.assert_allclose(found.scores, values, rtol=1e-5)
        if width == 1.0:
            assert pick(build("max_herding"), points - 5, available, labelled).indices.tolist() == picks


def test_few_candidates_are_looked_at_again():
    points, _, _ = problems.problem(1, num=2000)
    _, similarity = similarities(points - 5, 0.3)
    unit, every = similarities(points - 5, 0.3)[0].astype(np.float32), np.ones(2000, bool)
    herd = jax.jit(lambda points: _coverage.herd(points, jnp.ones(2000), RBF[0.3], every, 50, ~every))
    indices, _, looked = herd(unit)
    assert indices.tolist() == oracle.herding(similarity, np.ones(2000), every, ~every, 50)[0]
    assert looked[0] == 2000
    assert np.mean(looked) < 0.15 * 2000


def test_uncertainty_herding_weighs_by_margins_and_is_as_wide_as_labels_are_apart():
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        given = problems.predictions(seed)._replace(features=points - 5)
        top = np.sort(problems.mean_probabilities(given), axis=1)
        unit, _ = similarities(points - 5, 1.0)
        width, weights = 1.0, (available | labelled).astype(float)
        if labelled.sum() > 1:
            apart = oracle.distances(unit[labelled], unit[labelled])
            width = apart[~np.eye(len(apart), dtype=bool)].min()
        if labelled.any():
            weights = available * (1 - top[:, -1] + top[:, -2])
        acquisition = build("uncertainty_herding")
        found = pick(acquisition, acquisition.summarise(given), available, labelled)
        picks, values = oracle.herding(similarities(points - 5, width)[1], weights, available, labelled, QUERY)
        assert found.indices.tolist() == picks
        np.testing.assert_allclose(found.scores, values, rtol=2e-4)
        # Without predictions it is herding; and with a kernel that reaches nobody else margins alone.
        acquisition = build("uncertainty_herding", kernel=RBF[1.0])
        cold = pick(acquisition, acquisition.summarise(Predictions(None, points - 5)), available, ~EVERY)
        assert cold.indices.tolist() == pick(build("max_herding"), points - 5, available, ~EVERY).indices.tolist()
        acquisition = selection.uncertainty_herding(kernel=lambda squared: (squared == 0.0).astype(jnp.float32))
        alone = pick(acquisition, acquisition.summarise(given), available, EVERY & ~available)
        margins = np.where(available, 1 - top[:, -1] + top[:, -2], -1)
        assert alone.indices.tolist() == np.argsort(-margins, kind="stable")[:QUERY].tolist()


def test_equal_labels_are_not_apart():
    points = np.array([[1, 0], [1, 0], [0, 1], [0.8, 0.6]], np.float32)
    for labelled, apart in (([1, 1, 0, 0], 1.0), ([1, 1, 1, 0], np.sqrt(2)), ([1, 1, 1, 1], np.sqrt(0.4))):
        found = jax.jit(_coverage.closest)(points, np.array(labelled, bool))
        np.testing.assert_allclose(found, apart, rtol=1e-5)


# Disagreement


def test_drop_query_clusters_what_draws_disagree_about():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        points, available, labelled = problems.problem(seed)
        favourite = np.where(rng.random((5, NUM)) < 0.2, rng.integers(0, 4, (5, NUM)), rng.integers(0, 4, NUM))
        logits = (4 * np.eye(4)[favourite] + 0.1 * rng.normal(size=(5, NUM, 4))).astype(np.float32)
        given = Predictions(logits, points - 5)
        voted = problems.mean_probabilities(given).argmax(axis=1)
        differ = (logits.argmax(axis=2) != voted).sum(axis=0)
        threshold = 2
        while threshold > 0 and (available & (differ > threshold)).sum() < 2 * QUERY:
            threshold -= 1
        chosen = available & (differ > threshold)
        chosen = chosen if chosen.sum() >= QUERY else available
        acquisition = build("drop_query", candidates_per_pick=2)
        found = pick(acquisition, acquisition.summarise(given), available, labelled, key=seed)
        unit = ((points - 5) / np.linalg.norm(points - 5, axis=1, keepdims=True)).astype(np.float32)
        expected = pick(build("k_means"), unit, chosen, ~EVERY, key=seed)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    cold = acquisition.summarise(Predictions(None, points - 5))
    found = pick(acquisition, cold, available, labelled, key=seed)
    np.testing.assert_array_equal(found.indices, pick(build("k_means"), unit, available, ~EVERY, key=seed).indices)


def test_balanced_margins_take_turns():
    acquisition = build("balanced_margin")
    for seed in SEEDS:
        _, available, labelled = problems.problem(seed)
        given = problems.predictions(seed)
        p = problems.mean_probabilities(given)
        margins = np.stack([p[:, c] - np.delete(p, c, axis=1).max(axis=1) for c in range(p.shape[1])], axis=1)
        counts = np.bincount(p[labelled].argmax(axis=1), minlength=p.shape[1])
        picks = []
        for _ in range(QUERY):
            rare = counts.argmin()
            left = [i for i in np.flatnonzero(available) if i not in picks]
            picks.append(min(left, key=lambda i, rare=rare: abs(margins[i, rare])))
            counts[rare] += 1
        found = pick(acquisition, acquisition.summarise(given), available, labelled)
        assert found.indices.tolist() == picks
