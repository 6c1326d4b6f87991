"""Posteriors that are calibrated in every fit: what is held out, with which keys, and what reads the result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import calibration
from tests.fixtures import centroids, close, clouds, same, same_key, split

TRAIN, TEST = (jax.tree.map(jnp.asarray, part) for part in clouds())
SPLIT, DRAWS = 0x63616C69, 0x62726174  # what is folded into the key of a fit


# The state is what a fit was given; a draw is a key, and noise of it beside the inputs the outputs.
RECORDING = baal.Posterior(
    fit=lambda key, dataset, labelled, previous=None: {
        "key": key, "labelled": labelled, "fits": jnp.int32(1) if previous is None else previous["fits"] + 1
    },
    sample=split,
    apply=lambda state, draw, inputs: inputs + jax.random.normal(draw, (1, 4)),
)  # fmt: skip
SEEN = calibration.Scaling(
    fit=lambda logits, targets, weights=None: {"logits": logits, "targets": targets, "weights": weights},
    apply=lambda params, logits: 2.0 * logits,
)


def recording(**options):
    return calibration.calibrated(RECORDING, SEEN, **{"num_samples": 3, **options})


def held_out(key, labelled, share, most):
    """Ids of examples, by random numbers of their places among the labelled: ``floor(share · labelled)`` of them."""
    (ids,), number = np.nonzero(labelled), int(np.floor(labelled.sum() * share + 1e-6))
    values = np.asarray(jax.random.uniform(jax.random.fold_in(key, SPLIT), (40,)))[: len(ids)]
    return ids[np.argsort(-values)][: min(number, most)]


def noise(key):
    """Of the three draws that a scaling is fitted to."""
    keys = jax.random.split(jax.random.fold_in(key, DRAWS), 3)
    return np.stack([jax.random.normal(one, (1, 4)) for one in keys])


@pytest.mark.parametrize("options", [{}, {"refit": True, "held_out": 0.3}], ids=["kept", "refit"])
def test_a_share_of_the_labels_is_held_out_and_the_key_is_left_to_the_posterior(options):
    posterior, share = recording(max_held_out=6, batch_size=4, **options), options.get("held_out", 0.2)
    key, previous, taken = jax.random.key(5), None, []
    for number in (0, 1, 4, 5, 10, 20, 40):
        labelled = np.zeros(40, bool)
        labelled[np.random.default_rng(number).permutation(40)[:number]] = True
        rows = held_out(key, labelled, share, 6)
        state = posterior.fit(key, TRAIN, jnp.asarray(labelled), previous)
        same_key(state.base["key"], key)
        kept = labelled & ~np.isin(np.arange(40), rows)
        same(state.base["labelled"], labelled if options else kept)
        assert int(state.base["fits"]) == (1 if previous is None else 2)
        params, count = state.params, len(rows)
        assert params["logits"].shape == (3, 6, 4)
        same(params["weights"], np.arange(6) < count)
        same(params["targets"][:count], TRAIN.targets[rows])
        close(params["logits"][:, :count], np.asarray(TRAIN.inputs)[rows][None] + noise(key), 1e-6)
        taken.append(count)
        previous = state._replace(base=state.base | {"fits": jnp.int32(1)})
    assert taken == ([0, 0, 1, 1, 3, 6, 6] if options else [0, 0, 0, 1, 2, 4, 6])


def test_with_validation_nothing_is_held_out():
    posterior, previous, labelled = recording(validation=TEST, batch_size=None), None, jnp.arange(40) < 20
    for number in range(2):
        key = jax.random.key(number)
        state = previous = posterior.fit(key, TRAIN, labelled, previous)
        same_key(state.base["key"], key)
        same(state.base["labelled"], labelled)
        assert (state.params["weights"], int(state.base["fits"])) == (None, number + 1)
        same(state.params["targets"], TEST.targets)
        close(state.params["logits"], TEST.inputs[None] + noise(key), 1e-6)


@pytest.mark.parametrize("options", [{}, {"validation": TEST}, {"refit": True}], ids=["held out", "given", "refit"])
def test_no_key_is_used_twice(options, key_reuse):
    fit = lambda key, *rest: RECORDING.fit(key, *rest) | {"key": jax.random.normal(key)}  # noqa: E731
    posterior = calibration.calibrated(RECORDING._replace(fit=fit), SEEN, num_samples=3, **options)
    posterior.fit(jax.random.key(0), TRAIN, jnp.arange(40) < 20)


def test_draws_are_those_of_the_posterior_and_their_logits_are_scaled(key):
    base = centroids(9.0)
    scaling = calibration.temperature(penalty=0.01)
    posterior = calibration.calibrated(base, scaling, num_samples=4, validation=TEST)
    state = posterior.fit(key, TRAIN, jnp.arange(40) < 20)
    draws = posterior.sample(key, state, 3)
    same(draws, base.sample(key, state.base, 3))
    raw = jnp.stack([base.apply(state.base, draw, TEST.inputs) for draw in draws])
    scaled = jnp.stack([posterior.apply(state, draw, TEST.inputs) for draw in draws])
    close(scaled, scaling.apply(state.params, raw), 1e-5)
    assert np.abs(scaled - raw).max() > 1
    network = baal.TrainState(baal.Variables({"kernel": jnp.ones(1)}, {}), (), jnp.int32(1), jnp.float32(0))
    assert calibration.CalibratedState(network, None).variables is network.variables  # for features


EMPTY, VALUES = jax.tree.map(lambda leaf: leaf[:0], TEST), TEST._replace(targets=TEST.inputs[:, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": EMPTY}, "validation is empty"),
        ({"validation": VALUES}, "targets are float32, but a scaling is fitted to integer classes"),
        ({"held_out": 0.7}, "held_out=0.7 must be more than 0 and at most 0.5"),
        ({"held_out": 0.0}, "held_out=0.0 must be more than 0 and at most 0.5"),
        ({"held_out": 0.1, "validation": TEST}, "beside validation"),
        ({"refit": True, "validation": TEST}, "refit=True beside validation"),
        ({"max_held_out": 0}, "max_held_out=0"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        recording(**options)


def test_what_is_no_scaling_and_has_no_classes_is_refused():
    with pytest.raises(ValueError, match=r"is no Scaling: call its builder, as in calibration\.temperature\(\)"):
        calibration.calibrated(centroids(), calibration.vector)
    for dataset in (VALUES, TRAIN._replace(targets=None)):
        with pytest.raises(ValueError, match="a scaling is fitted to integer classes"):
            recording(held_out=0.5).fit(jax.random.key(0), dataset, jnp.ones(len(dataset.inputs), bool))
