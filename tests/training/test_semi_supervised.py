"""Losses of semi-supervised fits: the papers' equations; augmentations: exactly the changes that are promised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax.training import augmentation, semi_supervised
from tests.fixtures import classes_data, close, first
from tests.oracles import semi_supervised as oracle


def plus(offset):
    return lambda key, batch: batch._replace(inputs=batch.inputs + offset)


def linear(start):
    return baal.from_functions(lambda key, inputs: jnp.asarray(start), lambda params, inputs, key: inputs @ params)


PI = semi_supervised.pi_model(ramp_up=3, weight=10.0)
MATCH = semi_supervised.fix_match(plus(0.5), weight=2.0, threshold=0.3)
SURE = semi_supervised.fix_match(plus(0.5), threshold=0.8)
LOSSES = {
    "pi": (PI.loss, oracle.probability_difference),
    "pi, regression": (semi_supervised.squared_difference, oracle.squared_difference),
    "fix_match": (MATCH.loss, lambda first, second: oracle.fix_match(first, second, 0.3)),
    "fix_match, sure": (SURE.loss, lambda first, second: oracle.fix_match(first, second, 0.8)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_follow_the_equations(name):
    loss, expected = LOSSES[name]
    views = np.random.default_rng(1).normal(size=(2, 9, 2, 4)) * 1.5

    @jax.jit
    def both(one, other):
        return loss(one, other), jax.grad(lambda *views: loss(*views).sum(), argnums=(0, 1))(one, other)

    values, slopes = jax.device_get(both(*views.astype(np.float32)))
    close(values, expected(*views))
    for place in range(2):
        if place == 0 and name.startswith("fix_match"):  # no gradient goes through the pseudo-label
            np.testing.assert_array_equal(slopes[0], 0.0)
            assert 0 < np.count_nonzero(values) <= 18 - (name != "fix_match")  # both sides of the threshold were there
            continue
        for c in range(4):
            moved = views.copy()
            moved[place, ..., c] += 1e-6
            close(slopes[place][..., c], (expected(*moved) - expected(*views)) / 1e-6, rtol=1e-3, atol=1e-4)


def test_certain_and_undecided_rows():
    certain = np.array([[0.0, -np.inf, -np.inf]], np.float32)
    for loss, expected in ((PI.loss, 2 / 9), (MATCH.loss, np.log(3))):
        step = jax.jit(jax.value_and_grad(lambda second, loss=loss: jnp.sum(loss(certain, second))))
        value, slope = step(np.zeros((1, 3), np.float32))
        close(value, expected)
        assert np.isfinite(slope).all()
    # A probability of exactly the threshold counts.
    loss = semi_supervised.fix_match(plus(0.5), threshold=0.5).loss
    close(loss(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)), np.log([2.0]))


def test_the_ramp_is_the_papers_curve():
    steps = np.array([0, 1, 7, 19, 20, 21, 1000], np.int32)
    close(jax.jit(semi_supervised.gaussian_ramp(3.0, 20))(steps), oracle.ramp(steps, 20, 3.0), rtol=1e-5)
    assert float(semi_supervised.gaussian_ramp(3.0, 0)(np.int32(0))) == 3.0
    close(PI.weight(np.int32(1)), oracle.ramp(1, 3, 10.0))
    assert float(MATCH.weight(np.int32(0))) == 2.0
    slope = jax.jit(jax.grad(lambda weight: semi_supervised.gaussian_ramp(weight, 20)(np.int32(7))))(3.0)
    close(slope, oracle.ramp(7, 20, 1.0), rtol=1e-5)


def test_with_nothing_labelled_nothing_is_learnt(key):
    start = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    fit = baal.trainer(optax.sgd(0.1), baal.losses.cross_entropy, num_steps=3, unlabelled=PI._replace(second=plus(1)))
    state = fit(linear(start))(key, classes_data(), first(0, 20))
    close((state.variables.params, state.loss), (start, 0.0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: semi_supervised.pi_model(ramp_up=-1), "ramp_up=-1"),
        (lambda: semi_supervised.pi_model(ramp_up=1, weight=-1.0), "weight=-1.0"),
        (lambda: semi_supervised.fix_match(plus(1), threshold=1.5), "threshold=1.5"),
        (lambda: semi_supervised.fix_match(plus(1), threshold=-0.5), "threshold=-0.5"),
        (lambda: semi_supervised.fix_match(plus(1), weight=float("inf")), "weight=inf"),
        (lambda: semi_supervised.fix_match(0.5), "strong=0.5"),
    ],
)
def test_bad_arguments_are_refused_where_they_are_given(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def mean_of_both(one, other):
    return jnp.mean(one)


@pytest.mark.parametrize(
    ("unlabelled", "outputs", "message"),
    [
        (PI, (3,), "does not depend on the key and nothing is augmented"),
        (PI._replace(second=plus(1), loss=mean_of_both), (3,), "the loss of unlabelled.*32.*leave out the mean"),
        (PI._replace(first=lambda key, batch: batch._replace(inputs=batch.inputs > 0)), (3,), "return the same"),
        (PI._replace(second=plus(1)), (1,), "single class.*squared_difference"),
        (semi_supervised.fix_match(plus(1)), (1,), "single class.*binary_logits"),
        (PI._replace(second=plus(1)), (), r"first outputs are no array \[U, …, C\] but \(32,\)"),
    ],
)
def test_what_cannot_work_is_refused_when_the_fit_is_traced(unlabelled, outputs, message, key):
    def loss(outputs, targets):
        return outputs.reshape(len(outputs), -1)[:, 0]

    fit = baal.trainer(optax.sgd(0.1), loss, num_steps=1, unlabelled=unlabelled)(linear(np.ones((4, *outputs), "f4")))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(fit, key, classes_data(), first(9, 20))


# Images whose pixels are all different, and none of them 0.
IMAGE = np.arange(1, 61).reshape(6, 5, 2)
TARGETS = np.arange(400)


def changed(augment, dtype=np.uint8):
    after = jax.jit(augment)(jax.random.key(0), baal.Dataset(np.stack([IMAGE] * 400).astype(dtype), TARGETS))
    assert (after.inputs.shape, after.inputs.dtype) == ((400, 6, 5, 2), dtype)
    np.testing.assert_array_equal(after.targets, TARGETS)
    return np.asarray(after.inputs).astype(int)


def test_flip_mirrors_or_leaves(key_reuse):
    images = changed(augmentation.flip(0.3), np.float32)
    mirrored = (images == IMAGE[:, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored ^ (images == IMAGE).all(axis=(1, 2, 3))).all()
    assert 0.22 < mirrored.mean() < 0.38
    np.testing.assert_array_equal(changed(augmentation.flip(1.0)), np.stack([IMAGE[:, ::-1]] * 400))
    np.testing.assert_array_equal(changed(augmentation.flip(0.0)), np.stack([IMAGE] * 400))


def test_shift_moves_by_every_offset_and_fills_with_zeros(key_reuse):
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
    possible = {padded[i : i + 6, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    assert {image.tobytes() for image in changed(augmentation.shift(2))} == possible


def test_cutout_blanks_one_square_around_any_pixel(key_reuse):
    images = changed(augmentation.cutout(3), np.float32)
    holes = images[..., 0] == 0
    np.testing.assert_array_equal(images, np.where(holes[..., None], 0, IMAGE))
    possible = np.zeros((6, 5, 6, 5), bool)
    for row, column in np.ndindex(6, 5):
        possible[row, column, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True  # cut off by the edge
    assert {hole.tobytes() for hole in holes} == {hole.tobytes() for hole in possible.reshape(30, 6, 5)}


def test_compose_gives_each_part_a_key_of_its_own_and_the_batch_of_the_part_before(key):
    def part(key, batch):
        return batch._replace(inputs=batch.inputs * 2 + jax.random.uniform(key))

    batch = baal.Dataset(np.ones(3, np.float32), TARGETS)
    noise = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(2)]
    found = augmentation.compose(part, part)(key, batch).inputs
    np.testing.assert_allclose(found, np.full(3, 4 + 2 * noise[0] + noise[1]), rtol=1e-6)
    assert noise[0] != noise[1]


def test_bad_input_is_named():
    for make, message in (
        (lambda: augmentation.flip(1.5), "probability=1.5"),
        (lambda: augmentation.flip(-0.1), "probability=-0.1"),
        (lambda: augmentation.shift(0), "pixels=0"),
        (lambda: augmentation.cutout(-1), "size=-1"),
        (lambda: augmentation.flip()(jax.random.key(0), baal.Dataset(jnp.ones((2, 4)), None)), r"\(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
