"""The networks of the experiments: parameters, shapes, byte images, draws, and the same function on every backend."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

import baal_jax as baal
from tests.fixtures import close

TINY_VGG = ((4, 4), (4, 4), (6, 6, 6), (8, 8, 8), (8, 8, 8))
IMAGES = np.random.default_rng(9).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
KEY, DRAW = jax.random.key(0), jax.random.key(1)
NETWORKS = {
    "vgg": lambda **o: models.VGG16(stages=TINY_VGG, hidden=(8, 8), **o),
    "wide resnet": lambda **o: models.WideResNet(depth=10, width=1, **o),
    "small": lambda **o: models.SmallCNN(channels=(4, 4), hidden=8, patch=2, batch_norm=True, **o),
}


def test_parameters_are_those_of_the_papers():
    convolutions, head = 14_714_688, 4096 + 4096 * 4096 + 4096 + 4096 * 10 + 10
    for network, size, expected in [
        (models.VGG16(), 32, convolutions + 512 * 4096 + head),
        (models.VGG16(), 224, convolutions + 25088 * 4096 + head),  # of ImageNet, the original
        (models.WideResNet(depth=28, width=10), 32, 36_479_194),  # the paper's 36.5 million
    ]:
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
        variables = jax.eval_shape(baal.from_linen(network).init, KEY, image)
        assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == expected


@pytest.mark.parametrize(("name", "dtype"), [("vgg", None), ("wide resnet", jnp.bfloat16), ("small", None)])
def test_networks_read_bytes_and_give_float_logits(name, dtype):
    model = baal.from_linen(NETWORKS[name](dtype=dtype))
    variables = jax.jit(model.init)(KEY, IMAGES)
    floats = IMAGES.astype(np.float32) / 127.5 - 1.0
    of_bytes, of_floats = jax.jit(lambda v: [model.apply(v, x, DRAW) for x in (IMAGES, floats)])(variables)
    assert (of_bytes.shape, of_bytes.dtype) == ((3, 10), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables.params)} == {jnp.dtype("float32")}
    close(of_floats, of_bytes, atol=1e-5)


def test_every_backend_computes_the_same_with_the_same_parameters(monkeypatch):
    model = baal.from_linen(NETWORKS["vgg"]())
    variables = jax.jit(model.init)(KEY, IMAGES)

    def loss(params):
        return jnp.sum(model.apply(variables._replace(params=params), IMAGES, DRAW) ** 2)

    ours = jax.jit(jax.value_and_grad(loss))(variables.params)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    stock = jax.jit(jax.value_and_grad(lambda params: loss(params)))(variables.params)
    close(ours, stock, atol=1e-5 * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(stock[1])))


def test_a_wide_head_computes_what_the_stock_layers_do(monkeypatch):
    model, called, used = baal.from_linen(models.MLP(hidden=(1024, 1024))), [], models.dropped_dot
    variables = jax.jit(model.init)(KEY, IMAGES)
    monkeypatch.setattr(models, "dropped_dot", lambda *a: called.append(used(*a)) or called[-1])
    ours = jax.jit(model.apply)(variables, IMAGES, DRAW)
    assert [dot is not None for dot in called] == [True]
    monkeypatch.setattr(models, "dropped_dot", lambda *a: None)
    close(ours, jax.jit(lambda *a: model.apply(*a))(variables, IMAGES, DRAW), atol=1e-5)


UNITS = (1024, 768)


def masks(rng, rate):
    return [(rng.random((1, n)) < 1 - rate).astype(np.float32) / np.float32(1 - rate) for n in UNITS]


def test_a_dense_layer_between_masks_is_the_stock_one_or_nan(rng):
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((6, UNITS[0]), UNITS))
    before, after = masks(rng, 0.5)

    def ours(before, after, x, kernel):
        return models.dropped_dot(before, after, 0.5)(x * before, kernel, (((1,), (0,)), ((), ()))) * after

    def stock(before, after, x, kernel):
        return ((x * before) @ kernel) * after

    @jax.jit
    def values(*arguments):
        gradients = lambda f: jax.grad(lambda *a: jnp.sum(f(*a) ** 2), (2, 3))(*arguments)  # noqa: E731
        return [(f(*arguments), *gradients(f)) for f in (ours, stock)]

    ours_then_stock = values(before, after, x, kernel)
    close(*ours_then_stock, atol=1e-5 * max(float(np.abs(leaf).max()) for leaf in ours_then_stock[1]))
    for first, second in ((np.ones_like(before), after), (before, np.ones_like(after))):  # which keep too much
        assert np.isnan(values(first, second, x, kernel)[0][0]).all()


def test_other_backends_and_low_rates_have_stock_dense_layers(rng, monkeypatch):
    assert models.dropped_dot(*masks(rng, 0.2), 0.2) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert models.dropped_dot(*masks(rng, 0.5), 0.5) is None
