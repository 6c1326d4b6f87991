"""The networks of the experiments: parameters, shapes, byte images, draws, and the same function on every backend."""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal

import layers
import models

TINY_VGG = ((4, 4), (4, 4), (6, 6, 6), (8, 8, 8), (8, 8, 8))


def images(count=3, side=32):
    return jax.random.randint(jax.random.key(9), (count, side, side, 3), 0, 256).astype(jnp.uint8)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables.params))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        # The convolutions of VGG16 have 14,714,688 weights.
        (models.VGG16(), 14_714_688 + 512 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 10 + 10),
        (models.VGG16(hidden=(512,)), 14_714_688 + 512 * 512 + 512 + 5130),
        (models.WideResNet(depth=28, width=10), 36_479_194),  # the paper's 36.5 million
    ],
)
def test_parameters_are_those_of_the_papers(network, expected):
    model = baal.from_linen(network)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8))
    assert count(variables) == expected


def test_an_imagenet_image_meets_the_original_head():
    model = baal.from_linen(models.VGG16())
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.uint8))
    assert variables.params["Dense_0"]["kernel"].shape == (25088, 4096)


NETWORKS = {
    "vgg": lambda **o: models.VGG16(stages=TINY_VGG, hidden=(8, 8), **o),
    "vgg with norm": lambda **o: models.VGG16(stages=TINY_VGG, hidden=(8,), batch_norm=True, **o),
    "wide resnet": lambda **o: models.WideResNet(depth=10, width=1, **o),
    "small": lambda **o: models.SmallCNN(channels=(4, 4), hidden=8, patch=2, batch_norm=True, **o),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_read_bytes_and_give_float_logits(name):
    for dtype in (None, jnp.bfloat16):
        model = baal.from_linen(NETWORKS[name](dtype=dtype))
        variables = model.init(jax.random.key(0), images(1))
        logits = model.apply(variables, images(), jax.random.key(1))
        assert logits.shape == (3, 10)
        assert logits.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(variables.params)} == {jnp.dtype("float32")}
        floats = images().astype(jnp.float32) / 127.5 - 1.0
        np.testing.assert_allclose(model.apply(variables, floats, jax.random.key(1)), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg", "wide resnet"])
def test_every_backend_computes_the_same_with_the_same_parameters(name, monkeypatch):
    network = NETWORKS[name]()
    model = baal.from_linen(network)
    variables = model.init(jax.random.key(0), images(1))

    def losses(params):
        return jnp.sum(model.apply(variables._replace(params=params), images(), jax.random.key(1)) ** 2)

    ours = jax.value_and_grad(losses)(variables.params)
    monkeypatch.setattr(models, "fast_conv", lambda: jax.lax.conv_general_dilated)
    monkeypatch.setattr(models, "max_pool_2x2", lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    stock = jax.value_and_grad(losses)(variables.params)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(stock[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), ours, stock)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_nnx_network_is_the_linen_network(batch_norm):
    options = {"channels": (4, 6), "hidden": 8, "patch": 2, "batch_norm": batch_norm, "rate": 1e-12}
    linen = baal.from_linen(models.SmallCNN(**options))
    twin = baal.from_nnx(lambda rngs: models.SmallCNNnnx((16, 16, 3), **options, rngs=rngs))
    x = images(side=16)
    theirs = twin.init(jax.random.key(0), x)
    convs = {f"Conv_{i}": dict(theirs.params["convs"][i]) for i in range(2)}
    dense = {"Dense_0": dict(theirs.params["dense"]), "Dense_1": dict(theirs.params["out"])}
    norms = {f"BatchNorm_{i}": dict(theirs.params["norms"][i]) for i in range(2)} if batch_norm else {}
    ours = linen.init(jax.random.key(0), x)._replace(params={**convs, **dense, **norms})
    found = linen.apply(ours, x, jax.random.key(1))
    np.testing.assert_allclose(found, twin.apply(theirs, x, jax.random.key(1)), rtol=1e-4, atol=1e-5)


def test_patches_keep_every_pixel():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    cut = models.patches(x, 2)
    assert cut.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(cut[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    with pytest.raises(ValueError, match="patch=3"):
        models.patches(x, 3)


def test_a_depth_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="depth=20"):
        models.WideResNet(depth=20).init(jax.random.key(0), images(1), train=False)


def test_two_by_two_maps_take_the_dense_path(monkeypatch):
    called = []
    monkeypatch.setattr(layers, "_dense_conv", lambda x, k: called.append(x.shape) or jnp.zeros((*x.shape[:3], 8)))
    network = NETWORKS["vgg"]()
    network.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, images(1), train=False)
    assert called == [(1, 2, 2, 8)] * 3


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_wide_head_computes_what_the_stock_layers_do(dtype, monkeypatch):
    network = models.MLP(hidden=(1024, 1024)) if dtype is None else models.VGG16(
        stages=TINY_VGG, hidden=(1024, 1024), dtype=dtype
    )  # fmt: skip
    model = baal.from_linen(network)
    variables = model.init(jax.random.key(0), images(1))
    called, used = [], layers.dropped_dot
    monkeypatch.setattr(models, "dropped_dot", lambda *a: called.append(used(*a)) or called[-1])
    ours = model.apply(variables, images(), jax.random.key(1))
    assert len(called) == 1
    assert called[0] is not None
    resting = network.apply({"params": variables.params}, images(1), train=False)
    monkeypatch.setattr(models, "dropped_dot", lambda *a: None)
    stock = model.apply(variables, images(), jax.random.key(1))
    np.testing.assert_allclose(ours, stock, rtol=1e-5 if dtype is None else 0.05, atol=1e-5 if dtype is None else 0.05)
    # One row at rest meets no mask, and the same layers as several.
    several = network.apply({"params": variables.params}, images(), train=False)
    np.testing.assert_allclose(resting[0], several[0], rtol=1e-5 if dtype is None else 0.05, atol=0.02)


def test_a_training_batch_of_one_has_a_mask_like_any_other():
    network = models.MLP(hidden=(8, 8))
    variables = network.init(jax.random.key(0), images(1), train=False)
    rngs = {"dropout": jax.random.key(3)}
    before = [network.apply(variables, images(1), train=True, rngs=rngs)]

    class Stock(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = models.scaled(x).reshape(x.shape[0], -1)
            for width in (8, 8):
                x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(width)(x)))
            return nn.Dense(10)(x)

    np.testing.assert_allclose(before[0], Stock().apply(variables, images(1), train=True, rngs=rngs), rtol=1e-5)
