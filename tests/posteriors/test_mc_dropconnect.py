"""MC-DropConnect against all masks of a small layer written out, and what it leaves alone."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import losses
from baal_jax.posteriors._mc_dropconnect import mc_dropconnect

RATE = 0.3
KERNEL = np.array([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]], np.float32)
X = np.array([[1.0, -1.0, 0.4], [2.0, 0.3, 1.7]], np.float32)


class Net(nn.Module):
    """Weights, biases, a normalisation with a scale and dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(2)(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden, self.out = nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.hidden(x))))


def trainer(num_steps=3):
    return baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=num_steps, batch_size=4)


def data():
    inputs = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    return baal.Dataset(jnp.asarray(inputs), jnp.arange(8) % 2)


@pytest.fixture(scope="module")
def linen():
    posterior = mc_dropconnect(baal.from_linen(Net()), trainer(), RATE)
    return posterior, posterior.fit(jax.random.key(0), data(), jnp.ones(8, bool))


def dense(dtype=jnp.float32):
    params = {"kernel": jnp.asarray(KERNEL, dtype), "bias": jnp.full((1, 2), 0.25, dtype)}
    return baal.from_functions(lambda key, x: params, lambda params, x, key: x @ params["kernel"] + params["bias"])


def drawn(posterior, model, num_samples, seed=1):
    """Outputs ``[S, B, C]`` of draws at the initial weights."""
    state = baal.training.TrainState(model.init(jax.random.key(0), X), None, jnp.zeros((), int), jnp.zeros(()))
    return baal.predict(jax.random.key(seed), posterior, state, jnp.asarray(X), num_samples=num_samples)


def test_moments_are_those_of_all_masks_written_out():
    found = np.asarray(drawn(mc_dropconnect(dense(), trainer(), RATE), dense(), 20_000), np.float64)
    masks = np.array(list(itertools.product([0, 1], repeat=KERNEL.size))).reshape(-1, *KERNEL.shape)
    weights = np.prod(np.where(masks == 1, 1 - RATE, RATE), axis=(1, 2))
    outputs = np.einsum("bi,mij->mbj", X, masks * KERNEL / (1 - RATE)) + 0.25
    mean = np.einsum("m,mbj->bj", weights, outputs)
    np.testing.assert_allclose(mean, X @ KERNEL + 0.25, rtol=1e-6)
    centred = outputs - mean
    covariance = np.einsum("m,mbj,mcj->bcj", weights, centred, centred)  # between the two examples: one mask for both
    error = np.sqrt(covariance[[0, 1], [0, 1]] / len(found))
    assert (np.abs(found.mean(axis=0) - mean) < 5 * error).all()
    sampled = np.einsum("sbj,scj->bcj", found - mean, found - mean) / len(found)
    np.testing.assert_allclose(sampled, covariance, atol=0.06 * np.abs(covariance).max())
    # Nothing but these outputs: every draw is one of the masks, and all 64 of them come.
    nearest = np.abs(found[:, None] - outputs[None]).max(axis=(2, 3))
    assert nearest.min(axis=1).max() < 1e-5
    assert len({*nearest.argmin(axis=1)}) == 64


def shown(params, **options):
    """``[S, …]`` the parameters as the network sees them: a network that returns them."""
    leaves, structure = jax.tree.flatten(params)
    sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def apply(params, x, key):
        return jnp.broadcast_to(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)]), (len(x), sum_size))

    sum_size = sum(leaf.size for leaf in leaves)
    model = baal.from_functions(lambda key, x: params, apply)
    flat = np.asarray(drawn(mc_dropconnect(model, trainer(), RATE, **options), model, 50))[:, 0]
    pieces = np.split(flat, sizes, axis=1)
    return jax.tree.unflatten(structure, [p.reshape(-1, *leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)])


def differing(params, **options):
    """Paths of what differs between draws."""
    seen = jax.tree_util.tree_leaves_with_path(shown(params, **options))
    paths = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in seen]
    return {path for path, leaf in paths if (leaf != leaf[:1]).any()}


MODELS = {"linen": lambda: baal.from_linen(Net()), "nnx": lambda: baal.from_nnx(NnxNet)}


@pytest.mark.parametrize("library", MODELS)
def test_kernels_are_masked_and_nothing_else(library):
    params = MODELS[library]().init(jax.random.key(0), jnp.asarray(X)).params
    expected = {"linen": {"Dense_0/kernel", "Dense_1/kernel"}, "nnx": {"hidden/kernel", "out/kernel"}}[library]
    assert differing(params) == expected


def test_paths_choose():
    square = jnp.ones((3, 4))
    params = {"first": {"w": square, "scale": square}, "list": [{"weight": square}, {"weight": jnp.ones(5)}]}
    assert differing(params) == {"first/w", "list/0/weight"}
    assert differing(params, select=lambda path, leaf: leaf.ndim == 1) == {"list/1/weight"}
    assert differing(params, select=lambda path, leaf: path.startswith("first/")) == {"first/w", "first/scale"}


def test_masks_scale_what_they_keep_and_differ_between_layers():
    kernels = shown({name: {"kernel": jnp.ones((8, 8))} for name in ("a", "b")})
    a, b = kernels["a"]["kernel"], kernels["b"]["kernel"]
    np.testing.assert_allclose(np.unique(a), [0, 1 / (1 - RATE)], rtol=1e-6)
    np.testing.assert_allclose(np.mean(a == 0), RATE, atol=0.04)  # 3,200 entries: 5 standard errors
    assert np.mean(a != b) > 0.3


def test_a_mask_does_not_depend_on_other_layers():
    alone = shown({"b": {"kernel": jnp.ones((8, 8))}})["b"]["kernel"]
    beside = shown({"a": {"kernel": jnp.ones((3, 8))}, "b": {"kernel": jnp.ones((8, 8))}})["b"]["kernel"]
    np.testing.assert_array_equal(alone, beside)


def test_half_precision_stays():
    model = dense(jnp.bfloat16)
    posterior = mc_dropconnect(model, trainer(), RATE)
    state = baal.training.TrainState(model.init(jax.random.key(0), X), None, jnp.zeros((), int), jnp.zeros(()))
    assert posterior.apply(state, jax.random.key(0), jnp.asarray(X, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("num_steps", [1, 30])
def test_every_step_masks_anew_and_the_stored_weights_are_whole(num_steps):
    start = {"kernel": jnp.ones((12, 4)), "bias": jnp.ones((1, 4))}
    model = baal.from_functions(lambda key, x: start, lambda params, x, key: x @ params["kernel"] + params["bias"])
    fit = baal.trainer(optax.sgd(0.01), losses.squared_error, num_steps=num_steps, batch_size=4)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32))
    posterior = mc_dropconnect(model, fit, 0.5)
    params = posterior.fit(
        jax.random.key(0), baal.Dataset(inputs, jnp.zeros((8, 4))), jnp.ones(8, bool)
    ).variables.params
    same = np.mean(np.asarray(params["kernel"]) == 1.0)  # a dropped weight has no gradient
    assert (0.25 < same < 0.75) if num_steps == 1 else same == 0.0
    assert (np.asarray(params["bias"]) != 1.0).all()
    assert np.abs(params["kernel"]).min() > 0.5


def test_a_step_is_that_of_the_masked_network():
    model = dense()
    fit = baal.trainer(optax.sgd(1.0), losses.squared_error, num_steps=1, batch_size=2)
    targets = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    posterior = mc_dropconnect(model, fit, RATE)
    state = posterior.fit(jax.random.key(3), baal.Dataset(jnp.asarray(X), jnp.asarray(targets)), jnp.ones(2, bool))
    step = KERNEL - np.asarray(state.variables.params["kernel"])
    candidates = []
    for mask in itertools.product([0, 1], repeat=6):
        scaled = np.reshape(mask, (3, 2)) / (1 - RATE)
        residual = X @ (scaled * KERNEL) + 0.25 - targets
        candidates.append(scaled * (X.T @ residual) / 4)  # half squares, averaged over two examples of two outputs
    assert np.abs(np.array(candidates) - step).max(axis=(1, 2)).min() < 1e-5


def test_only_weights_are_random_in_prediction(linen):
    posterior, state = linen
    inputs = data().inputs
    kept = mc_dropconnect(baal.from_linen(Net()), trainer(), 1e-7)  # nothing is dropped, and dropout rests
    draws = baal.predict(jax.random.key(0), kept, state, inputs, num_samples=3)
    rest = baal.from_linen(Net()).deterministic(state.variables, inputs)
    np.testing.assert_allclose(draws, np.broadcast_to(rest, draws.shape), rtol=1e-5, atol=1e-6)
    logits = np.asarray(baal.predict(jax.random.key(0), posterior, state, inputs, num_samples=3))
    assert np.abs(logits[:, None] - logits[None])[np.triu_indices(3, 1)].max(axis=(1, 2)).min() > 1e-3


def test_a_vmapped_draw_is_the_draw_alone(linen):
    posterior, state = linen
    draws = posterior.sample(jax.random.key(0), state, 4)
    inputs = data().inputs
    together = jax.vmap(lambda draw: posterior.apply(state, draw, inputs))(draws)
    np.testing.assert_allclose(together[2], posterior.apply(state, draws[2], inputs), rtol=1e-5, atol=1e-6)


def test_layers_before_the_first_masked_one_are_computed_once():
    width, batch, samples = 128, 16, 20
    net = nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(width), nn.relu, nn.Dense(10)])
    inputs = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    targets, labelled = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((batch,), bool)

    def flops(select):
        posterior = mc_dropconnect(baal.from_linen(net), trainer(1), RATE, select=select)
        state = jax.eval_shape(posterior.fit, jax.random.key(0), baal.Dataset(inputs, targets), labelled)
        options = {"num_samples": samples, "batch_size": None}
        compiled = baal.predict.lower(jax.random.key(0), posterior, state, inputs, **options).compile()
        return compiled.cost_analysis()["flops"]

    hidden, head = 2 * batch * width * width, 2 * batch * width * 10
    masks = 600 * width * 10 * samples  # random bits and scaling, at most
    assert flops(lambda path, leaf: path == "layers_4/kernel") < 2.2 * hidden + samples * head + masks
    assert flops(None) > samples * (2 * hidden + head)


@pytest.mark.parametrize("rate", [0, 1.0, -0.1, True, 2])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=f"rate={rate}"):
        mc_dropconnect(dense(), trainer(), rate)


def test_nothing_to_mask_is_refused():
    posterior = mc_dropconnect(baal.from_linen(nn.Dense(2)), trainer(), select=lambda path, leaf: False)
    with pytest.raises(ValueError, match=r"select picks no weights.*'bias' \(2,\), 'kernel' \(3, 2\)"):
        posterior.fit(jax.random.key(0), data(), jnp.ones(8, bool))
