"""Stock networks of both module systems become pure functions, unedited."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

import baal_jax as baal
from baal_jax._util import random
from baal_jax.models import require_stochastic, sown_losses
from baal_jax.typing import Variables
from tests import networks
from tests.fixtures import close, same

INPUTS = np.tile(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), (2, 1, 1, 1)).astype(np.float32)  # rows twice
FLAT = np.ascontiguousarray(INPUTS[:3, 0, :, 0])
MODELS = {
    **{cls.__name__: lambda cls=cls: baal.from_linen(cls()) for cls in networks.LINEN},
    **{cls.__name__: lambda cls=cls: baal.from_nnx(cls) for cls in networks.NNX},
    "NnxInstance": lambda: baal.from_nnx(networks.NnxConv(nnx.Rngs(0))),
    "LinenDropPath": lambda: baal.from_linen(networks.LinenDropPath(), stochastic=(networks.DropPath,)),
    "NnxOwnLayer": lambda: baal.from_nnx(networks.NnxOwnLayer, stochastic=(networks.NnxNoise,)),
}
FLAGS = {  # what a module is told at its call, in training; all others have `train`
    "NnxAttention": {"deterministic": False},
    **{name: {} for name in ("LinenConstructor", "NnxMode", "NnxOwnLayer")},
    "LinenDropPath": {"stochastic_depth": True},
}


def stock(name, variables, training, key=None):
    """What the module itself gives, called by hand."""
    flags = {flag: value == training for flag, value in FLAGS.get(name, {"train": True}).items()}
    if name.startswith("Linen"):
        arguments = flags.values() if name == "LinenPosition" else ()
        module = getattr(networks, name)(**({"train": training} if name == "LinenConstructor" else {}))
        arrays, rngs = {"params": variables.params, **variables.collections}, {} if key is None else {"dropout": key}
        keywords = {} if arguments else flags
        return module.apply(arrays, INPUTS, *arguments, **keywords, rngs=rngs, mutable=[*variables.collections])
    module = nnx.eval_shape(lambda: getattr(networks, "NnxConv" if name == "NnxInstance" else name)(nnx.Rngs(0)))
    nnx.update(module, variables.params)
    if variables.collections:
        nnx.update(module, variables.collections)
    module.eval()
    return module(INPUTS, **({"rngs": None} if name == "NnxRngs" else flags)), None


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_stock_module_with_randomness_where_it_belongs(name, key):
    model = MODELS[name]()
    key_train, one, *more = jax.random.split(key, 8)
    start = networks.variables_of(model, INPUTS)

    @jax.jit
    def everything(start):
        trained, collections = model.train(start, INPUTS, key_train)
        collections, loss = sown_losses(collections)
        moved = start._replace(collections=collections)
        batches = np.stack([INPUTS, INPUTS[::-1], *[INPUTS] * 6])
        draws = jax.vmap(model.apply, (None, 0, 0))(moved, batches, jnp.stack([one, one, *more]))
        key_dropout = jax.random.fold_in(random.vectorised(key_train), 0)
        by_hand = stock(name, start, True, key_dropout) if name.startswith("Linen") else None
        return trained, moved, loss, draws, by_hand, (model.deterministic(moved, INPUTS), stock(name, moved, False)[0])

    trained, moved, loss, draws, by_hand, deterministic = everything(start)
    if by_hand:
        close((trained, moved.collections), (by_hand[0], dict(by_hand[1])), rtol=1e-5)
    close(*deterministic, rtol=1e-5)  # with running statistics that are not those of this batch
    # In training every row has a mask of its own; in prediction a key is one function of a row, whatever its place.
    # Flax's attention has one mask for all rows; a layer that only a flag of the user's own turns on is off in nnx.
    assert np.abs(trained[:3] - trained[3:]).max() > 1e-3 or name in ("LinenAttention", "NnxAttention", "NnxOwnLayer")
    close(draws[0][:3], draws[0][3:], rtol=1e-5)
    close(draws[1][::-1], draws[0], rtol=1e-5)
    assert draws.shape == (8, 6, 3)
    assert np.asarray(draws)[1:, :1].std(axis=0).max() > 1e-3
    # What is carried keeps its structure and its types, so that a scan can; and all of it moves.
    kept = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) and np.any(a != b), start[1], moved[1])
    assert all(jax.tree.leaves(kept))
    if name == "LinenCounter":
        same(moved.collections, {"counters": {"calls": 1}})  # what was sown is not state
        close(loss, INPUTS.mean(), rtol=1e-5)


@pytest.mark.parametrize("own", [False, True], ids=["stock", "own"])
@pytest.mark.parametrize("system", ["linen", "nnx"])
def test_normalisation_rests_in_prediction_and_dropout_does_not(system, own, key):
    if system == "linen":
        model = baal.from_linen(networks.LinenNormed(own))
    else:
        module = networks.NnxNormed(nnx.Rngs(0), own)
        module.eval()  # training turns it on all the same
        model = baal.from_nnx(module)
    of_name = lambda path, leaf: np.full(leaf.shape, 4.0 if "var" in jax.tree_util.keystr(path) else 0.5, np.float32)  # noqa: E731
    variables = jax.tree_util.tree_map_with_path(of_name, jax.eval_shape(model.init, key, FLAT[:1]))

    @jax.jit
    def everything(variables):
        predicted = model.apply(variables, FLAT, key), model.deterministic(variables, FLAT)
        return *model.train(variables, FLAT, key), *predicted

    trained, collections, predicted, evaluated = jax.device_get(everything(variables))
    mean, scale = FLAT.mean(axis=0), FLAT.std(axis=0)
    batch, running = (FLAT - mean, FLAT - 0.5) if own else ((FLAT - mean) / scale / 2 + 0.5, (FLAT - 0.5) / 4 + 0.5)
    close(evaluated, running, rtol=1e-5)
    for found, expected in ((trained, batch), (predicted, running)):
        kept = found != 0  # and doubled
        assert 0 < kept.sum() < kept.size
        np.testing.assert_allclose(found[kept], 2 * expected[kept], rtol=1e-3, atol=1e-4)
    assert any(np.allclose(leaf, 0.99 * 0.5 + 0.01 * mean, rtol=1e-5) for leaf in jax.tree.leaves(collections))


def test_what_training_and_prediction_are_told(key):
    class TwoFaced(nn.Module):
        """Returns something else in training, and has a flag that nobody knows."""

        @nn.compact
        def __call__(self, x, train: bool, gain: float):
            y = nn.Dense(8, use_bias=False, name="dense")(x["a"] + x["b"])
            y = gain * nn.Dropout(0.5, deterministic=not train)(y)
            return {"out": y, "aux": x["a"]} if train else y

    told = {"train_kwargs": {"train": True, "gain": 1.0}, "predict_kwargs": {"train": False, "gain": 3.0}}
    model, inputs = baal.from_linen(TwoFaced(), **told), {"a": FLAT, "b": 2 * FLAT}
    variables = networks.variables_of(model, inputs)
    calls = model.train, model.apply
    (trained, _), predicted = jax.jit(lambda: [call(variables, inputs, key) for call in calls])()
    linear = 3.0 * FLAT @ variables.params["dense"]["kernel"]
    assert set(trained) == {"out", "aux"}
    close(jax.jit(model.deterministic)(variables, inputs), 3 * linear, rtol=1e-5)
    for found, expected in ((trained["out"], 2 * linear), (predicted, 6 * linear)):
        close(found, np.where(found == 0, 0, expected), rtol=1e-5)
        assert 0 < np.count_nonzero(found) < found.size


def test_dropout_is_on_and_off_whatever_a_module_says(key):
    nets = [nn.Sequential([nn.Dropout(0.5, deterministic=off), nn.Dense(3)]) for off in (True, False)]
    attention = [baal.from_nnx(networks.NnxAttention, predict_kwargs={"deterministic": flag}) for flag in (True, False)]

    def all_of(model):
        variables = networks.variables_of(model, INPUTS)
        called = model.apply(variables, INPUTS[:2], key), model.train(variables, INPUTS[:2], key)[0]
        return model.deterministic(variables, INPUTS[:2]), *called

    for pair in (attention, [baal.from_linen(net) for net in nets]):
        (off, drawn, trained), other = jax.jit(lambda pair=pair: [all_of(model) for model in pair])()
        close((off, drawn, trained), other)
        assert min(np.abs(drawn - off).max(), np.abs(trained - off).max()) > 1e-3
    assert [net.layers[0].deterministic for net in nets] == [True, False]  # the user's object is left alone


class Streams(nn.Module):
    """What it computes shows every key that it was given."""

    @nn.compact
    def __call__(self, x):
        start = self.variable("memory", "start", lambda: jax.random.normal(self.make_rng("noise"), (1, 8)))
        noise = [jax.random.normal(self.make_rng(name), x.shape) for name in ("dropout", "noise")]
        return {"out": x * self.param("w", nn.initializers.normal(1.0), (1, 8)), "noise": noise, "start": start.value}


def test_every_stream_of_a_linen_module_has_a_key_of_its_own(key):
    model = baal.from_linen(Streams(), rng_collections=("dropout", "noise"))

    def streams(key):
        return {name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "noise"))}

    @jax.jit
    def everything():
        variables = model.init(key, FLAT)
        key_params, key_streams = jax.random.split(key)
        start = Streams().init({"params": key_params, **streams(key_streams)}, FLAT)
        called = [Streams().apply(start, x, rngs=streams(random.vectorised(key))) for x in (FLAT, FLAT[:1])]
        found = {"params": variables.params, **variables.collections}
        return (found, model.train(variables, FLAT, key)[0], model.apply(variables, FLAT[:1], key)), (start, *called)

    close(*everything())


class NnxStreams(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):  # by keyword alone
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (8,)))
        self.left, self.right = networks.NnxNoise(rngs), networks.NnxNoise(rngs)

    def __call__(self, x, rngs: nnx.Rngs):
        noise = [layer(jnp.zeros_like(x)) for layer in (self.left, self.left, self.right)]
        return jnp.stack([*noise, jax.random.normal(rngs.noise(), x.shape)], axis=1)


def test_every_stream_of_an_nnx_module_has_a_key_of_its_own_and_starts_again(key):
    model = baal.from_nnx(NnxStreams, stochastic=(networks.NnxNoise,))

    @jax.jit
    def everything():
        variables = model.init(key, FLAT)
        trained = [model.train(variables, FLAT, k)[0] for k in (key, key, jax.random.key(1))]
        return variables, model.init(jax.random.key(1), FLAT), trained, model.apply(variables, FLAT, key)

    variables, other, (one, again, another), predicted = everything()
    assert np.abs(variables.params["weight"] - other.params["weight"]).max() > 1e-2
    same(one, again)
    different = np.concatenate([np.moveaxis(one, 1, 0), np.moveaxis(another, 1, 0)])
    assert len(np.unique(different)) == different.size
    close(predicted, np.broadcast_to(predicted[:1], predicted.shape))
    assert len(np.unique(predicted[0])) == predicted[0].size


def test_an_nnx_object_is_left_alone_and_every_init_returns_to_its_weights(key):
    module = networks.NnxConv(nnx.Rngs(0))
    before = jax.device_get(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    model = baal.from_nnx(module)
    one, two = (model.init(jax.random.key(seed), None) for seed in (0, 1))
    same(one, two)
    same(one.params["out"]["kernel"], module.out.kernel[...])
    jax.eval_shape(lambda: (model.apply(one, INPUTS, key), model.train(one, INPUTS, key)))
    same(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))), before)
    assert (type(module.dropout), int(module.dropout.rngs.count[...])) == (nnx.Dropout, 0)
    assert [module.dropout.deterministic, module.norm.use_running_average] == [False, False]


def test_weights_of_a_training_loop_of_ones_own_are_read_as_they_are_kept(key):
    """A trained nnx module as States, however they are parted, and arrays of a linen one; what lacks is refused."""
    module = networks.NnxConv(nnx.Rngs(5))
    module(INPUTS, train=True)  # moves the batch statistics
    params, statistics, rest = (nnx.state(module, kind) for kind in (nnx.Param, nnx.BatchStat, nnx.Not(nnx.Param)))
    model = baal.from_nnx(networks.NnxConv)
    expected = model.deterministic(baal.from_nnx(module).init(key, None), INPUTS)
    for variables in (
        Variables(params, statistics),
        Variables(params, rest),
        Variables(nnx.state(module), {}),
        Variables(nnx.to_pure_dict(params), statistics),
        Variables(params, nnx.to_pure_dict(statistics)),
    ):
        same(model.deterministic(variables, INPUTS), expected)
        started = baal.from_nnx(networks.NnxConv, variables=variables).init(key, INPUTS)
        same(started.collections["norm"], nnx.to_pure_dict(statistics)["norm"])
    posterior = baal.posteriors.mc_dropout(model)
    drawn = baal.predict(key, posterior, Variables(params, statistics), INPUTS, num_samples=2, batch_size=4)
    close(drawn[1], model.apply(Variables(params, statistics), INPUTS, jax.random.split(key, 2)[1]), rtol=1e-5)
    with pytest.raises(ValueError, match="trainer is None, so nothing can be fitted"):
        posterior.fit(key, baal.Dataset(INPUTS, np.arange(6) % 3), np.ones(6, bool))
    linen = baal.from_linen(networks.LinenConv())
    arrays = linen.init(key, INPUTS)
    pure = [nnx.to_pure_dict(part) for part in (params, rest)]
    for network, variables, error, message in (
        (model, Variables(params, {}), ValueError, "lacks collections/norm/mean, .* pass .*nnx.BatchStat"),
        (
            model,
            Variables(*pure),
            ValueError,
            "has collections/channels/rngs/count, .* which the network has not: pass",
        ),
        (model, module, TypeError, "variables is a NnxConv: pass baal.Variables"),
        (linen, Variables(arrays.params, {}), ValueError, "lacks batch_stats/.*mean.* pass .*'batch_stats': …}"),
        (linen, {"params": arrays.params, **arrays.collections}, TypeError, "variables is a dict: pass baal.Variables"),
    ):
        for predict in (network.apply, lambda given, inputs, _, of=network: of.deterministic(given, inputs)):
            with pytest.raises(error, match=message):
                predict(variables, INPUTS, key)


def test_functions_get_parameters_and_keys_and_one_example_at_a_time_in_prediction(key):
    seen = []

    def init(key, inputs):
        return jax.random.normal(key, (inputs.shape[-1], 2))

    def apply(params, inputs, key):
        seen.append(inputs.shape)
        return inputs @ params + jax.random.normal(key, (len(inputs), 1))

    def drawn_but_unused(params, inputs, key):
        jax.random.normal(key)
        return {"out": inputs @ params}

    model = baal.from_functions(init, apply, deterministic=lambda params, inputs: 0.5 * inputs @ params)

    @jax.jit
    def everything():
        variables, keys = model.init(key, FLAT[:1]), random.vectorised(key)
        drawn = model.train(variables, FLAT, key)[0], model.apply(variables, FLAT, key)
        unused = baal.from_functions(init, drawn_but_unused).deterministic(variables, FLAT)
        noise = [jax.random.normal(keys, (num, 1)) for num in (3, 1)]
        return (variables, *drawn, model.deterministic(variables, FLAT), unused), noise, init(key, FLAT)

    (variables, *found), noise, params = everything()
    same(variables, Variables(params, {}))
    assert seen == [(3, 8), (1, 8)]
    linear = FLAT @ np.asarray(params)
    close(found, [linear + noise[0], linear + noise[1], 0.5 * linear, {"out": linear}], atol=1e-5)
    with pytest.raises(ValueError, match=r"depends on the key.*deterministic=\(params, inputs\) -> outputs"):
        baal.from_functions(init, apply).deterministic(variables, FLAT)


def test_models_of_the_wrong_randomness_are_refused_with_the_reason(key):
    deterministic = [
        baal.from_linen(nn.Dense(3)),
        baal.from_linen(networks.LinenPosition(rate=0.0)),
        baal.from_linen(networks.LinenDropPath()),
        baal.from_nnx(lambda rngs: nnx.Linear(8, 3, rngs=rngs)),
        baal.from_functions(lambda key, x: jnp.ones((8, 3)), lambda params, x, key: x @ params),
    ]
    for model in deterministic:
        variables = jax.eval_shape(model.init, key, FLAT)
        for why, words in ((None, ".*MC-dropout would be deterministic"), (" because of this", " because of this$")):
            with pytest.raises(ValueError, match=f"does not depend on the key{words}"):
                require_stochastic(model, variables, FLAT, why)

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + jax.random.normal(self.make_rng("dropout"), x.shape)

    noisy = baal.from_linen(Noisy())
    require_stochastic(noisy, Variables({}, {}), FLAT)
    with pytest.raises(ValueError, match=r"depends on the key.*stochastic=\(MyLayer,\)"):
        noisy.deterministic(Variables({}, {}), FLAT)


def windows_of(jaxpr):
    for equation in jaxpr.eqns:
        if any(word in equation.primitive.name for word in ("conv_general", "window", "select_and")):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from windows_of(inner)


class Stem(nn.Module):
    """Strides, pooling, a small map and remat: what XLA has no fast gradient of in a loop."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), 2)(x)), (3, 3), (2, 2), "SAME")
        return nn.remat(nn.Conv)(3, (3, 3))(x).mean(axis=(1, 2))


class NnxStem(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first, self.last = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs), nnx.Conv(4, 3, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.max_pool(nnx.relu(self.first(x)), (2, 2), (2, 2))).mean(axis=(1, 2))


STEM = Stem()
STEMS = {
    "linen": lambda: baal.from_linen(STEM),
    "nnx": lambda: baal.from_nnx(NnxStem),
    "functions": lambda: baal.from_functions(
        lambda key, x: STEM.init(key, x), lambda params, x, key: STEM.apply(params, x)
    ),
}


@pytest.mark.parametrize("name", STEMS)
def test_the_gradient_of_a_stock_network_has_no_convolution_that_is_slow_on_a_cpu(name, key, monkeypatch):
    model = STEMS[name]()
    variables = networks.variables_of(model, INPUTS)
    ways = [
        lambda v: model.train(v, INPUTS, key)[0],
        lambda v: model.apply(v, INPUTS, key),
        lambda v: model.deterministic(v, INPUTS),
    ]

    def gradients():  # anew, as a trace is kept
        return [jax.grad(lambda params, f=f: jnp.sum(f(variables._replace(params=params)) ** 2)) for f in ways]

    ours = jax.jit(lambda params: [gradient(params) for gradient in gradients()])(variables.params)
    for gradient in gradients():
        found = [*windows_of(jax.make_jaxpr(gradient)(variables.params).jaxpr)]
        assert {equation.primitive.name for equation in found} == {"conv_general_dilated"}
        layouts = {tuple(equation.params["dimension_numbers"]) for equation in found}
        assert layouts == {((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))}  # the one that Eigen knows
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for gradient in gradients():
        found = [*windows_of(jax.make_jaxpr(gradient)(variables.params).jaxpr)]
        assert "select_and_scatter_add" in {equation.primitive.name for equation in found}
        assert "baal_conv" not in str(jax.make_jaxpr(gradient)(variables.params))
    close(ours, jax.jit(lambda params: [gradient(params) for gradient in gradients()])(variables.params), atol=1e-5)
