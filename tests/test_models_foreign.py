"""Networks as other libraries write them, unedited: inputs, outputs, flags, axes, boxes, losses, weights."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import baal_jax as baal
from baal_jax import features, models, posteriors
from tests.fixtures import close, same

INPUTS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 7, (12, 4)).astype(np.int32)
DATA, LABELLED = baal.Dataset(INPUTS, np.arange(12) % 3), np.arange(12) < 8


def trainer(**options):
    return baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=8, batch_size=4, **options)


class Body(nn.Module):
    """What the networks below share: an embedding or a vector in, logits out."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(3, name="head")(x)


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, input_ids, attention_mask=None, token_type_ids=None, deterministic: bool = True):
        mask = jnp.ones(input_ids.shape) if attention_mask is None else attention_mask
        hidden = (nn.Embed(7, 8)(input_ids) * mask[..., None].astype(jnp.float32)).mean(axis=1)
        return Body()(hidden, not deterministic)


class KeywordOnly(nn.Module):
    @nn.compact
    def __call__(self, *, inputs, is_training: bool):
        return Body()(inputs, is_training)


class Several(nn.Module):
    @nn.compact
    def __call__(self, *inputs, train=False):
        return Body()(jnp.concatenate(inputs, axis=-1), train)


class Pair(nn.Module):
    """Takes a pair as its one input."""

    @nn.compact
    def __call__(self, pair, train: bool):
        return Body()(pair[0] + pair[1], train)


class WithKey(nn.Module):
    """Draws its noise from a key that it is handed."""

    @nn.compact
    def __call__(self, x, key=None):
        x = nn.relu(nn.Dense(8)(x))
        if key is not None:
            x = x * jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)
        return nn.Dense(3, name="head")(x)


class WithNoise(nn.Module):
    """Two inputs and a key of a name of its own, which it cannot do without."""

    @nn.compact
    def __call__(self, x, y, noise_rng, train: bool = False):
        noise = jax.random.normal(noise_rng, x.shape) if train else jnp.zeros_like(x)
        return nn.Dense(3, name="head")(x + y + noise)


@flax.struct.dataclass
class Output:
    logits: jax.Array
    hidden: jax.Array | None = None


class Structured(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, train: bool):
        y = Body()(x, train)
        return {"tuple": (y, {"h": x}), "dict": {"logits": y, "h": x}, "dataclass": Output(y)}[self.kind]


class NamedAxis(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.BatchNorm(use_running_average=not train, axis_name="batch")(nn.Dense(8)(x))
        if not self.is_initializing():
            x = x - jax.lax.pmean(jnp.zeros(()), "devices")
        return Body()(x, train)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        initializer = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return Body()(nn.Dense(8, kernel_init=initializer)(x), train)


class Scanned(nn.Module):
    """Layers in a scan, rematerialised, as large networks have them."""

    @nn.compact
    def __call__(self, x, train: bool):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, carry, _):
                return nn.Dropout(0.1, deterministic=not train)(nn.tanh(nn.Dense(5)(carry))), None

        layers = nn.scan(
            nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=2
        )
        return Body()(layers()(x, None)[0], train)


class OwnStream(nn.Module):
    """Reads a random stream that nobody has named."""

    @nn.compact
    def __call__(self, x, train: bool):
        if train:
            x = jnp.where(jax.random.bernoulli(self.make_rng("drop_path"), 0.5, (len(x), 1)), x, 0.0)
        return Body()(x, train)


class NnxTable(nnx.Module):
    """Holds a plain array, and a layer in a list."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(5, 8, rngs=rngs)])
        self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.table = jnp.arange(8.0)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.layers[0](x)) * self.table[None], deterministic=True))


class NnxBridge(nnx.Module):
    """A linen network inside."""

    def __init__(self, rngs):
        self.trunk = nnx.bridge.lazy_init(nnx.bridge.ToNNX(Body(), rngs=rngs), jnp.asarray(INPUTS[:1]), True)
        self.head = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x, train: bool = False):
        return self.head(self.trunk(x, train))


class NnxKey(nnx.Module):
    """Is handed a key under the name of streams, and draws from it itself."""

    def __init__(self, rngs):
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x, *, rngs: jax.Array, train: bool = False):
        return self.head(x * jax.random.bernoulli(rngs, 0.5, x.shape).astype(x.dtype) if train else x)


class NnxLate(nnx.Module):
    """Made for evaluation alone: its dropout has no stream."""

    def __init__(self, rngs):
        self.dropout, self.head = nnx.Dropout(0.5), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x, training: bool = False):
        return self.head(self.dropout(x, deterministic=not training))


TOKENS = {"input_ids": IDS, "attention_mask": IDS > 0}
NETWORKS = {
    "a dict by keyword": (lambda: baal.from_linen(Tokens()), TOKENS),
    "a tuple by position": (lambda: baal.from_linen(Tokens()), tuple(TOKENS.values())),
    "one of several": (lambda: baal.from_linen(Tokens()), IDS),
    "keyword-only": (lambda: baal.from_linen(KeywordOnly()), INPUTS),
    "any number": (lambda: baal.from_linen(Several()), (INPUTS, INPUTS[:, :2])),
    "a pair as one": (lambda: baal.from_linen(Pair()), (INPUTS, INPUTS)),
    "a key": (lambda: baal.from_linen(WithKey()), INPUTS),
    "a key of another name": (lambda: baal.from_linen(WithNoise()), (INPUTS, INPUTS)),
    "a tuple out": (lambda: baal.from_linen(Structured("tuple"), outputs=lambda out: out[0]), INPUTS),
    "a dict out": (lambda: baal.from_linen(Structured("dict"), outputs=lambda out: out["logits"]), INPUTS),
    "a dataclass out": (lambda: baal.from_linen(Structured("dataclass"), outputs=lambda out: out.logits), INPUTS),
    "a named axis": (lambda: baal.from_linen(NamedAxis()), INPUTS),
    "boxes": (lambda: baal.from_linen(Boxed()), INPUTS),
    "layers in a scan": (lambda: baal.from_linen(Scanned()), INPUTS),
    "a stream of its own": (lambda: baal.from_linen(OwnStream()), INPUTS),
    "nnx, a plain array": (lambda: baal.from_nnx(NnxTable), INPUTS),
    "nnx, an instance": (lambda: baal.from_nnx(NnxTable(nnx.Rngs(0))), INPUTS),
    "nnx, a key": (lambda: baal.from_nnx(NnxKey), INPUTS),
    "nnx, no stream": (lambda: baal.from_nnx(NnxLate), INPUTS),
    "nnx, a linen module inside": (lambda: baal.from_nnx(NnxBridge(nnx.Rngs(0))), INPUTS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_taken_as_it_is(name, key):
    make, inputs = NETWORKS[name]
    model, rows = make(), lambda start: jax.tree.map(lambda leaf: leaf[start : start + 6], inputs)
    variables = model.init(key, rows(0))
    assert jax.tree.all(jax.tree.map(lambda leaf: isinstance(leaf, jax.Array | np.ndarray), variables))

    @jax.jit
    def calls(variables):
        drawn = [model.apply(variables, rows(0), k) for k in jax.random.split(key, 2)]
        trained = [model.train(variables, rows(0), k)[0] for k in jax.random.split(key, 2)]
        return drawn, trained, model.deterministic(variables, rows(0)), model.deterministic(variables, rows(6))

    drawn, trained, *fixed = calls(variables)
    assert fixed[0].shape == drawn[0].shape == (6, 3)
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    assert np.abs(trained[0] - trained[1]).max() > 1e-3
    gradient = features.gradient(model, sketch_size=4, variables=lambda variables: variables)(variables, rows(0))
    assert gradient.shape == (6, 4)
    assert np.ptp(gradient) > 0


class OtherFlag(nn.Module):
    """Batch statistics and dropout under a flag of another name."""

    flag: str = "isTraining"

    @nn.compact
    def __call__(self, x, isTraining: bool = False, phase: bool = False):
        train = {"isTraining": isTraining, "phase": phase}[self.flag]
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x) * 10 + 5)
        return Body()(x, train)


class ConstructorFlag(nn.Module):
    eval_mode: bool = True

    def setup(self):
        self.norm, self.body = nn.BatchNorm(use_running_average=self.eval_mode), Body()

    def __call__(self, x):
        return self.body(self.norm(x * 10 + 5), not self.eval_mode)


class Wrapper(nn.Module):
    net: nn.Module
    aside: float = 0.0

    def __call__(self, x):
        self.sow("losses", "activity", self.aside * jnp.mean(x**2))
        return self.net(x)


class NnxInner(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.dropout = nnx.BatchNorm(5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x, testing: bool = True):
        return self.head(self.dropout(self.norm(x * 10 + 5, use_running_average=testing), deterministic=True))


class NnxWrapper(nnx.Module):
    def __init__(self, rngs):
        self.net = NnxInner(rngs)

    def __call__(self, x):
        return self.net(x)


FLAGS = {
    "call": lambda: baal.from_linen(OtherFlag()),
    "inside": lambda: baal.from_linen(Wrapper(OtherFlag())),
    "constructor": lambda: baal.from_linen(ConstructorFlag()),
    "constructor inside": lambda: baal.from_linen(Wrapper(ConstructorFlag())),
    "told": lambda: baal.from_linen(OtherFlag("phase"), train_kwargs={"phase": True}),
    "nnx": lambda: baal.from_nnx(NnxInner),
    "nnx inside": lambda: baal.from_nnx(NnxWrapper(nnx.Rngs(0))),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_of_any_name_and_place_turns_training_on(name, key):
    model = FLAGS[name]()
    variables = model.init(key, INPUTS[:1])
    train = jax.jit(model.train)
    (one, after), (two, _) = (train(variables, INPUTS, k) for k in jax.random.split(key, 2))
    assert np.abs(one - two).max() > 1e-3
    after, _ = models.sown_losses(after)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max() > 1e-3, after, variables.collections)
    assert jax.tree.leaves(moved)
    assert all(jax.tree.leaves(moved))
    again = model.deterministic(variables, INPUTS)
    close(again[:3], model.deterministic(variables, INPUTS[:3]), rtol=1e-5)


def test_a_network_whose_statistics_no_flag_reaches_is_refused_with_the_cure(key):
    for module in (OtherFlag("phase"), Wrapper(OtherFlag("phase"))):
        with pytest.raises(ValueError, match=r"learns nothing in training.*train_kwargs"):
            baal.from_linen(module).init(key, INPUTS)
    baal.from_linen(OtherFlag("phase"), train_kwargs={}).init(key, INPUTS)


class Centred(nn.Module):
    """Dropout after a mean of the batch, or a running one."""

    collection: str

    @nn.compact
    def __call__(self, x, train: bool):
        class Centre(nn.Module):
            collection: str

            @nn.compact
            def __call__(self, x, train: bool):
                mean = self.variable(self.collection, "mean", lambda: jnp.ones((1, x.shape[-1])))
                before, now = mean.value, x.mean(axis=0, keepdims=True)
                mean.value = 0.9 * before + 0.1 * now
                return x - (now if train else before)

        return nn.Dropout(0.5, deterministic=not train)(Centre(self.collection, name="centre")(x, train))


@pytest.mark.parametrize(("collection", "rests"), [("batch_stats", True), ("running", False)])
def test_what_keeps_batch_statistics_is_a_normalisation_whatever_its_class(collection, rests, key):
    model = baal.from_linen(Centred(collection))
    variables = model.init(key, INPUTS)
    drawn = model.apply(variables, INPUTS, key)
    kept = 2 * (INPUTS - variables.collections[collection]["centre"]["mean"])
    close(drawn, np.where(drawn == 0, 0.0, kept), rtol=1e-5)  # the mean of one example is the example
    assert rests == bool(drawn.any())


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_several_outputs_are_refused_with_the_cure(kind, key):
    fit = posteriors.deep_ensemble(baal.from_linen(Structured(kind)), trainer(), 2).fit
    with pytest.raises(ValueError, match="outputs=lambda"):
        jax.eval_shape(fit, key, DATA, LABELLED)


def test_losses_that_are_sown_are_part_of_the_loss(key):
    fits = [jax.jit(trainer()(baal.from_linen(Wrapper(ConstructorFlag(), aside)))) for aside in (0.0, 1.0)]
    without, with_loss = (fit(key, baal.Dataset(np.ones_like(INPUTS), DATA.targets), LABELLED).loss for fit in fits)
    close(with_loss - without, 1.0, rtol=1e-5)


def test_a_batch_stays_split_over_devices_where_the_network_says_so(key):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))

    class Constrained(nn.Module):
        constrained: bool = True

        @nn.compact
        def __call__(self, x, train: bool):
            for _ in range(2):
                x = nn.relu(nn.Dense(64)(x))
                x = jax.lax.with_sharding_constraint(x, split) if self.constrained else x
            return Body()(x, train)

    inputs = jax.device_put(np.ones((64, 32), np.float32), split)

    def flops(constrained):
        model = baal.from_linen(Constrained(constrained))
        variables = model.init(key, inputs)
        compiled = jax.jit(model.apply).lower(variables, inputs, key).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(True) <= 1.05 * flops(False)


class Trunk(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(self.width, name="trunk")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(3, name="head")(nn.Dropout(0.3, deterministic=not train)(x))


def pretrained(seed=3, width=8, inputs=INPUTS):
    return jax.device_get(Trunk(width).init(jax.random.key(seed), inputs[:1]))


def only_head(path):
    return path[0] == "head"


BUILDERS = {name: make for name, make in posteriors.REGISTRY.items() if name != "dropout_gp"}


@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_not_trained_stays_as_it_was_given_bit_for_bit(name, key):
    given = pretrained()
    model = baal.from_linen(Trunk(), variables={**given, "params": {k: given["params"][k] for k in ("trunk", "norm")}})
    posterior = BUILDERS[name](model, trainer(trainable=only_head))
    acquire = baal.selection.top_k(baal.heuristics.bald)
    loop = baal.active_loop(posterior, acquire, query_size=1, num_samples=2)
    final, infos = jax.jit(lambda key: baal.run(loop, key, DATA, DATA, num_initial=4, num_rounds=2))(key)
    variables = final.posterior.variables
    same(variables.frozen, {**variables.frozen, "trunk": given["params"]["trunk"], "norm": given["params"]["norm"]})
    same(variables.collections["batch_stats"], given["batch_stats"])
    assert variables.params["trunk"]["kernel"] is None
    assert int(infos.num_failed_fits.sum()) == 0
    assert np.isfinite(infos.metrics["nll"]).all()
    head = jax.tree.leaves(variables.params)
    assert {leaf.shape for leaf in head} == {(8, 3), (3,)}
    if name == "deep_ensemble":
        heads = final.posterior.members.variables.params["head"]["kernel"]
        assert final.posterior.frozen["trunk"]["kernel"].shape == (5, 8)
        assert np.abs(heads[0] - heads[1]).max() > 0.1
    drawn = posterior.sample(key, final.posterior, 2)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(drawn)) < 400  # no trunk in it
    hidden = jax.nn.relu((INPUTS @ given["params"]["trunk"]["kernel"]) / np.sqrt(1 + 1e-5))
    close(features.last_hidden(model)(final.posterior, INPUTS), hidden, rtol=1e-4, atol=1e-6)


def test_a_part_of_an_nnx_module_is_given_and_heads_start_apart(key):
    given = {"layers": nnx.to_pure_dict(nnx.state(NnxTable(nnx.Rngs(3)).layers, nnx.Param))}
    model = baal.from_nnx(NnxTable, variables=given)
    state = posteriors.deep_ensemble(model, trainer(trainable=only_head), 2).fit(key, DATA, LABELLED)
    same(state.frozen["layers"], given["layers"])
    heads = state.members.variables.params["head"]["kernel"]
    assert np.abs(heads[0] - heads[1]).max() > 0.1


def test_pretrained_weights_are_arguments_and_what_rests_costs_no_backward_pass(key):
    width, inputs = 2048, np.ones((256, 2048), np.float32)
    given, data = pretrained(0, width, inputs), baal.Dataset(inputs, np.arange(256) % 3)

    def program(**options):
        make = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=1, batch_size=256, **options)
        return jax.jit(make(baal.from_linen(Trunk(width), variables=given))).lower(key, data, np.ones(256, bool))

    whole, part = program(), program(trainable=only_head)
    assert max(len(whole.as_text()), len(part.as_text())) < 4e5 < sum(leaf.nbytes for leaf in jax.tree.leaves(given))
    flops = [lowered.compile().cost_analysis()["flops"] for lowered in (part, whole)]
    forward = 2 * 256 * 2048 * 2048
    assert flops[0] <= 1.1 * forward
    assert flops[1] >= 1.9 * forward


def test_weights_that_do_not_fit_and_selections_of_nothing_are_refused(key):
    given = pretrained()
    wrong = {"params": {"head": {"kernel": np.zeros((8, 5), np.float32)}}}
    with pytest.raises(ValueError, match=r"params/head/kernel of shape \(8, 5\).*leave it out"):
        baal.from_linen(Trunk(), variables=wrong).init(key, INPUTS)
    with pytest.raises(ValueError, match=r"params/other/kernel.*nothing"):
        baal.from_linen(Trunk(), variables={"params": {"other": {"kernel": np.zeros(3)}}}).init(key, INPUTS)
    with pytest.raises(ValueError, match="no 'params'"):
        baal.from_linen(Trunk(), variables=given["params"])
    with pytest.raises(ValueError, match=r"trainable selects nothing.*trunk"):
        jax.eval_shape(trainer(trainable=lambda path: False)(baal.from_linen(Trunk())), key, DATA, LABELLED)


@pytest.mark.parametrize("make", [posteriors.mc_dropout, posteriors.swag, posteriors.bayes_by_backprop])
def test_none_among_parameters_and_a_tree_of_labels(make, key):
    model = baal.from_functions(
        lambda key, inputs: {"w": jax.random.normal(key, (5, 3)), "b": jnp.zeros(3), "activation": None},
        lambda p, x, key: jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0.0) @ p["w"] + p["b"][None],
        lambda p, x: x @ p["w"] + p["b"][None],
    )
    labels = {"w": "slow", "b": "still", "activation": None}
    by_label = optax.multi_transform({"slow": optax.adam(1e-2), "still": optax.set_to_zero()}, labels)
    fit = make(model, baal.trainer(by_label, baal.losses.cross_entropy, num_steps=8, batch_size=4)).fit
    state = fit(key, DATA, LABELLED)
    same(state.variables.params["b"], np.zeros(3, np.float32))
    assert np.isfinite(state.loss)
    assert state.variables.params["activation"] is None
