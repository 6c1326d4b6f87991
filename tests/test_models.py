"""Stock networks of both module systems become pure functions, unedited."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import losses, posteriors
from baal_jax.models import require_stochastic
from baal_jax.typing import Variables
from tests import networks

INPUTS = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
MODELS = {
    **{cls.__name__: lambda cls=cls: baal.from_linen(cls()) for cls in networks.LINEN},
    **{cls.__name__: lambda cls=cls: baal.from_nnx(cls) for cls in networks.NNX},
    "NnxInstance": lambda: baal.from_nnx(networks.NnxConv(nnx.Rngs(0))),
    "LinenDropPath": lambda: baal.from_linen(networks.LinenDropPath(), stochastic=(networks.DropPath,)),
    "NnxOwnLayer": lambda: baal.from_nnx(networks.NnxOwnLayer, stochastic=(networks.NnxNoise,)),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_prediction_is_random_and_one_key_is_one_function(model, key):
    variables = model.init(key, INPUTS[:1])
    apply = jax.jit(model.apply)
    draws = np.stack([apply(variables, INPUTS, jax.random.key(seed)) for seed in range(8)])
    assert draws.shape == (8, 6, 3)
    assert draws.std(axis=0).max() > 1e-3
    one = draws[1]
    chex.assert_trees_all_equal(one, apply(variables, INPUTS, jax.random.key(1)))
    repeated = apply(variables, np.repeat(INPUTS[:1], 6, axis=0), jax.random.key(1))
    chex.assert_trees_all_close(repeated, jnp.repeat(one[:1], 6, axis=0), rtol=1e-5, atol=1e-6)
    reversed_rows = apply(variables, INPUTS[::-1], jax.random.key(1))[::-1]
    chex.assert_trees_all_close(reversed_rows, one, rtol=1e-5, atol=1e-6)


def test_training_draws_a_mask_for_each_example():
    for model in (MODELS["LinenKeyword"](), MODELS["NnxKeyword"]()):
        variables = model.init(jax.random.key(0), INPUTS[:1])
        outputs, _ = model.train(variables, np.repeat(INPUTS[:1], 64, axis=0), jax.random.key(1))
        assert outputs.std(axis=0).min() > 1e-2


def test_a_model_trains_and_predicts_within_a_posterior(model, key):
    trainer = baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=3, batch_size=4)
    posterior = posteriors.mc_dropout(model, trainer)
    data = baal.Dataset(jnp.asarray(INPUTS), jnp.arange(6) % 3)
    state = posterior.fit(key, data, jnp.ones(6, bool))
    logits = baal.predict(key, posterior, state, data.inputs, num_samples=4)
    chex.assert_shape(logits, (4, 6, 3))
    assert np.isfinite(logits).all()
    assert logits.std(axis=0).max() > 1e-4


@pytest.mark.parametrize("name", ["LinenConv", "NnxConv", "NnxInstance"])
def test_batch_statistics_move_in_training_and_rest_in_prediction(name, key):
    model = MODELS[name]()
    variables = model.init(key, INPUTS[:1])
    _, collections = model.train(variables, INPUTS, jax.random.key(1))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), collections, variables.collections)
    assert all(jax.tree.leaves(moved))
    shifted = jax.tree.map(lambda leaf: leaf + 1, variables.collections)
    before, after = (model.apply(variables._replace(collections=c), INPUTS, key) for c in (collections, shifted))
    assert np.abs(before - after).max() > 1e-4  # running statistics are what prediction uses


def test_batch_normalisation_predicts_as_by_hand(key):
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            return nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(use_running_average=not train)(x))

    model = baal.from_linen(Norm())
    variables = model.init(key, INPUTS[:1, 0, :, 0])
    stats = {"batch_stats": {"BatchNorm_0": {"mean": jnp.full(8, 0.5), "var": jnp.full(8, 4.0)}}}
    outputs = np.asarray(model.apply(variables._replace(collections=stats), INPUTS[:, 0, :, 0], key))
    expected = (INPUTS[:, 0, :, 0] - 0.5) / np.sqrt(4.0 + 1e-5) / 0.5  # kept units are doubled
    kept = (outputs != 0).all(axis=0)
    assert 0 < kept.sum() < 8
    np.testing.assert_allclose(outputs[:, kept], expected[:, kept], rtol=1e-5)


def test_a_counter_of_the_users_own_is_carried_through_training(key):
    model = baal.from_linen(networks.LinenCounter())
    variables = model.init(key, INPUTS[:1])
    assert set(variables.collections) == {"counters"}  # what was sown is not state
    fit = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=7, batch_size=2)(model)
    state = fit(key, baal.Dataset(jnp.asarray(INPUTS), jnp.zeros(6, jnp.int32)), jnp.ones(6, bool))
    assert int(state.variables.collections["counters"]["calls"]) == 7
    predicted = model.apply(state.variables, INPUTS, key)
    chex.assert_shape(predicted, (6, 3))


@pytest.mark.parametrize("train", [True, False])
def test_both_flags_predict_alike_where_dropout_is_a_layer(train, key):
    stock = baal.from_linen(networks.LinenConv())
    forced = baal.from_linen(networks.LinenConv(), predict_kwargs={"train": train})
    variables = stock.init(key, INPUTS[:1])
    chex.assert_trees_all_equal(stock.apply(variables, INPUTS, key), forced.apply(variables, INPUTS, key))


def test_train_kwargs_name_flags_that_are_not_known(key):
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x, mode: str = "test"):
            return nn.Dense(2)(x) * jax.random.normal(self.make_rng("noise")) if mode == "fit" else nn.Dense(2)(x)

    model = baal.from_linen(Odd(), train_kwargs={"mode": "fit"}, rng_collections=("noise",))
    variables = model.init(key, jnp.ones((1, 4)))
    require_stochastic(model, variables, jnp.ones((1, 4)))


def test_attention_dropout_is_on_whatever_the_flag(key):
    model = baal.from_linen(networks.LinenAttention(), predict_kwargs={"train": False})
    require_stochastic(model, model.init(key, INPUTS[:1]), INPUTS[:1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: baal.from_linen(nn.Dense(3)),
        lambda: baal.from_linen(networks.LinenKeyword(rate=0.0)),
        lambda: baal.from_linen(networks.LinenDropPath()),
        lambda: baal.from_nnx(lambda rngs: nnx.Linear(8, 3, rngs=rngs)),
        lambda: baal.from_functions(lambda key, x: jnp.ones((8, 3)), lambda params, x, key: x @ params),
    ],
)
def test_a_deterministic_model_is_refused_with_the_reason(make, key):
    trainer = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1)
    posterior = posteriors.mc_dropout(make(), trainer)
    data = baal.Dataset(jnp.ones((4, 8)), jnp.zeros(4, jnp.int32))
    with pytest.raises(ValueError, match=r"does not depend on the key.*MC-dropout would be deterministic"):
        posterior.fit(key, data, jnp.ones(4, bool))


def test_dropout_of_rate_zero_predicts_what_the_module_predicts(key):
    module = networks.LinenKeyword(rate=0.0)
    model = baal.from_linen(module)
    variables = model.init(key, INPUTS[:1])
    expected = module.apply({"params": variables.params}, INPUTS, train=False)
    chex.assert_trees_all_close(model.apply(variables, INPUTS, key), expected, rtol=1e-5, atol=1e-6)


def test_the_mean_of_a_linear_layer_over_masks_is_its_deterministic_output(key):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            return nn.Dense(2)(nn.Dropout(0.3, deterministic=not train)(x))

    model = baal.from_linen(Linear())
    inputs = INPUTS[:2, 0, :, 0]
    variables = model.init(key, inputs)
    draws = jax.vmap(lambda k: model.apply(variables, inputs, k))(jax.random.split(key, 20_000))
    expected = Linear().apply({"params": variables.params}, inputs, train=False)
    error = np.asarray(draws.std(axis=0)) / np.sqrt(20_000)
    assert (np.abs(np.asarray(draws.mean(axis=0) - expected)) < 5 * error).all()


def test_channel_dropout_drops_whole_channels(key):
    class Channels(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            return nn.Dropout(0.5, broadcast_dims=(1, 2), deterministic=not train)(x)

    model = baal.from_linen(Channels())
    images = jnp.ones((3, 4, 4, 32))
    outputs = np.asarray(model.apply(Variables({}, {}), images, key))
    dropped = outputs == 0
    assert (dropped == dropped[:1, :1, :1]).all()
    assert 0 < dropped[0, 0, 0].sum() < 32


def test_nnx_instances_return_to_their_weights_and_factories_draw_new_ones():
    instance = networks.NnxMode(nnx.Rngs(3))
    kept = baal.from_nnx(instance)
    chex.assert_trees_all_equal(kept.init(jax.random.key(0), None), kept.init(jax.random.key(1), None))
    chex.assert_trees_all_equal(kept.init(jax.random.key(0), None).params["out"]["kernel"], instance.out.kernel[...])
    fresh = baal.from_nnx(networks.NnxMode)
    one, two = (fresh.init(jax.random.key(seed), None).params["out"]["kernel"] for seed in (0, 1))
    assert (one != two).any()


def test_the_users_nnx_object_is_left_alone(key):
    module = networks.NnxConv(nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState)))
    count = int(module.dropout.rngs.count[...])
    model = baal.from_nnx(module)
    variables = model.init(key, INPUTS[:1])
    model.apply(variables, INPUTS, key)
    model.train(variables, INPUTS, key)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))), before)
    assert int(module.dropout.rngs.count[...]) == count
    assert type(module.dropout) is nnx.Dropout
    assert not module.dropout.deterministic
    assert not module.norm.use_running_average


def test_linen_layers_keep_their_flags_after_a_call(key):
    module = networks.LinenConstructor(train=False)
    model = baal.from_linen(module)
    model.apply(model.init(key, INPUTS[:1]), INPUTS, key)
    assert module.train is False


def test_from_functions_passes_keys_and_parameters(key):
    def apply(params, inputs, key):
        return inputs @ params + jax.random.normal(key, (inputs.shape[0], 1))

    model = baal.from_functions(lambda key, x: jax.random.normal(key, (x.shape[-1], 2)), apply)
    variables = model.init(key, INPUTS[:1, 0, :, 0])
    rows = model.apply(variables, INPUTS[:, 0, :, 0], key) - INPUTS[:, 0, :, 0] @ variables.params
    chex.assert_trees_all_close(rows, jnp.broadcast_to(rows[:1, :1], rows.shape), atol=1e-5)  # one draw for all rows
    noise = model.train(variables, INPUTS[:, 0, :, 0], key)[0] - INPUTS[:, 0, :, 0] @ variables.params
    assert noise[:, 0].std() > 0.1  # one draw for each row


def test_inputs_may_be_a_pytree(key):
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            joined = jnp.concatenate([x["a"], x["b"]], axis=-1)
            return {"class": nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(joined)), "mask": x["a"] > 0}

    model = baal.from_linen(Two())
    inputs = {"a": jnp.ones((5, 3)), "b": jnp.ones((5, 4))}
    outputs = model.apply(model.init(key, inputs), inputs, key)
    chex.assert_shape(outputs["class"], (5, 2))
    chex.assert_shape(outputs["mask"], (5, 3))


def test_a_layer_that_is_off_inside_is_on_in_training_too(key):
    net = nn.Sequential([nn.Dense(8), nn.Dropout(0.5, deterministic=True), nn.Dense(3)])
    model = baal.from_linen(net)
    variables = model.init(key, jnp.ones((1, 4)))
    one, two = (model.train(variables, jnp.ones((5, 4)), jax.random.key(seed))[0] for seed in (1, 2))
    assert (one != two).any()
    assert net.layers[1].deterministic is True


def test_what_linen_modules_sow_is_not_state(key):
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            self.sow("losses", "activity", jnp.mean(x))
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))

    model = baal.from_linen(Sowing())
    variables = model.init(key, jnp.ones((1, 4)))
    assert variables.collections == {}
    fit = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=2, batch_size=2)(model)
    fit(key, baal.Dataset(jnp.ones((6, 4)), jnp.zeros(6, jnp.int32)), jnp.ones(6, bool))


class NnxKeywordRngs(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.dense, self.dropout = nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(x))


def test_nnx_classes_may_take_rngs_by_keyword(key):
    model = baal.from_nnx(NnxKeywordRngs)
    fit = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=2, batch_size=2)(model)
    state = fit(key, baal.Dataset(jnp.ones((6, 4)), jnp.zeros(6, jnp.int32)), jnp.ones(6, bool))
    chex.assert_shape(model.apply(state.variables, jnp.ones((2, 4)), key), (2, 3))


STOCK = {  # what the module itself gives in inference, for networks of every way of passing flags
    "LinenKeyword": {"train": False},
    "LinenPosition": {"train": False},
    "LinenConstructor": {},
    "LinenDeterministic": {"deterministic": True},
    "LinenInline": {"train": False},
    "LinenConv": {"train": False},
    "LinenAttention": {"train": False},
    "LinenCounter": {"train": False},
    "LinenDropPath": {},
    "NnxMode": {},
    "NnxKeyword": {"train": False},
    "NnxRngs": {"rngs": None},
    "NnxConv": {"train": False},
    "NnxInstance": {"train": False},
    "NnxAttention": {"deterministic": True},
    "NnxOwnLayer": {},
}


def _stock(name, variables, inputs):
    cls = getattr(networks, "NnxConv" if name == "NnxInstance" else name)
    if name.startswith("Linen"):
        arrays = {"params": variables.params, **variables.collections}
        args = [False] if name == "LinenPosition" else []
        return cls().apply(arrays, inputs, *args, **({} if args else STOCK[name]))
    module = cls(nnx.Rngs(0))
    nnx.update(module, variables.params)
    if variables.collections:
        nnx.update(module, variables.collections)
    module.eval()
    return module(inputs, **STOCK[name])


@pytest.mark.parametrize("name", MODELS)
def test_without_randomness_a_model_is_the_stock_module_in_inference(name, key):
    model = MODELS[name]()
    variables = model.init(key, INPUTS[:1])
    # Running statistics that differ from those at the start, and from those of the batch.
    _, collections = model.train(variables, INPUTS, jax.random.key(1))
    variables = variables._replace(collections=collections)
    outputs = jax.jit(model.deterministic)(variables, INPUTS)
    chex.assert_trees_all_close(outputs, _stock(name, variables, INPUTS), rtol=1e-5, atol=1e-6)
    rows = [model.deterministic(variables, INPUTS[i : i + 1])[0] for i in (4, 0)]
    chex.assert_trees_all_close(jnp.stack(rows), outputs[jnp.array([4, 0])], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("off", [True, False])
def test_a_layer_inside_is_off_whatever_it_says(off, key):
    net = nn.Sequential([nn.Dense(8), nn.Dropout(0.5, deterministic=off), nn.Dense(3)])
    model = baal.from_linen(net)
    variables = model.init(key, jnp.ones((1, 4)))
    expected = net.clone(layers=[net.layers[0], nn.Dropout(0.5, deterministic=True), net.layers[2]])
    inputs = INPUTS[:, 0, :4, 0]
    chex.assert_trees_all_close(
        model.deterministic(variables, inputs), expected.apply({"params": variables.params}, inputs), atol=1e-6
    )


def test_the_predict_flag_does_not_change_the_network_without_randomness(key):
    models = [
        baal.from_linen(networks.LinenAttention(), predict_kwargs={"train": train}) for train in (True, False)
    ] + [baal.from_nnx(networks.NnxAttention, predict_kwargs={"deterministic": value}) for value in (True, False)]
    variables = [model.init(key, INPUTS[:1]) for model in models]
    outputs = [model.deterministic(v, INPUTS) for model, v in zip(models, variables, strict=True)]
    chex.assert_trees_all_equal(outputs[0], outputs[1])
    chex.assert_trees_all_equal(outputs[2], outputs[3])


def test_functions_that_leave_the_key_alone_need_no_second_one(key):
    def apply(params, inputs, key):
        jax.random.normal(key)  # drawn, not used
        return {"out": inputs @ params}

    model = baal.from_functions(lambda key, x: jax.random.normal(key, (x.shape[-1], 2)), apply)
    variables = model.init(key, jnp.ones((1, 4)))
    inputs = INPUTS[:, 0, :4, 0]
    chex.assert_trees_all_close(model.deterministic(variables, inputs)["out"], inputs @ variables.params, rtol=1e-6)


def test_random_functions_name_their_network_without_randomness(key):
    def apply(params, inputs, key):
        return jnp.where(jax.random.bernoulli(key, 0.5, inputs.shape), inputs, 0.0) @ params

    def init(key, inputs):
        return jax.random.normal(key, (inputs.shape[-1], 2))

    inputs = INPUTS[:, 0, :4, 0]
    model = baal.from_functions(init, apply)
    variables = model.init(key, inputs)
    with pytest.raises(ValueError, match=r"depends on the key.*deterministic=\(params, inputs\) -> outputs"):
        model.deterministic(variables, inputs)
    model = baal.from_functions(init, apply, deterministic=lambda params, inputs: 0.5 * inputs @ params)
    chex.assert_trees_all_close(model.deterministic(variables, inputs), 0.5 * inputs @ variables.params, rtol=1e-6)


def test_an_unknown_random_layer_is_refused_where_no_randomness_is_allowed(key):
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x + jax.random.normal(self.make_rng("dropout"), x.shape))

    model = baal.from_linen(Noisy())
    with pytest.raises(ValueError, match=r"depends on the key.*stochastic=\(MyLayer,\)"):
        model.deterministic(model.init(key, jnp.ones((1, 4))), jnp.ones((2, 4)))
