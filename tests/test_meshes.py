"""Pools over devices and processes: the same picks, on Auto and on Explicit axes, and little that travels."""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import baal_jax as baal
from baal_jax import checkpoint, data, heuristics, losses, posteriors, selection
from tests import networks

SIZE = 509  # a prime number
RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(SIZE, 5)).astype(np.float32), np.arange(SIZE) % 3
TEST = baal.Dataset(INPUTS[:50], TARGETS[:50])
BYTES = {"bf16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1}


def means(key, dataset, labelled, previous=None):
    """Mean inputs of every class, a fit that compiles in no time."""
    members = jnp.where(labelled[:, None], jax.nn.one_hot(dataset.targets, 3), 0.0)
    return jnp.matmul(dataset.inputs.T, members) / jnp.maximum(members.sum(axis=0, keepdims=True), 1.0)


def draws(key, state, num_samples):
    return 0.3 * jax.random.normal(key, (num_samples, 5, 3))


def outputs(state, draw, inputs):
    return jnp.matmul(inputs, state + draw)


def rounds(place, folder):
    """What a pool of 509 examples comes to, by all that takes one."""
    dataset = place(baal.Dataset(INPUTS, TARGETS))
    posterior = baal.Posterior(means, draws, outputs)
    features = lambda state, inputs: inputs  # noqa: E731
    loop = baal.active_loop(posterior, selection.power(), query_size=4, num_samples=4, batch_size=100)
    state, info = loop.step(loop.init(jax.random.key(0), dataset, num_initial=6), dataset)
    seen = {"power": info.indices, "mean": info.mean_score, "test": loop.evaluate(state, TEST)["nll"]}
    seen["pool"] = loop.evaluate(state, dataset)["nll"]
    seen["outputs"] = jnp.sum(loop.predict(state, TEST.inputs) ** 2)
    with checkpoint.checkpointer(folder, {}) as saved:
        saved.save(1, state)
        restored = saved.restore(state)
    assert int(baal.pool.num_labelled(restored.pool)) == 10
    other = baal.active_loop(posterior, selection.badge(), query_size=4, num_samples=4, features=features)
    pool = baal.pool.label(baal.pool.exclude(baal.pool.init(SIZE), [3]), np.arange(10, 20))
    first = other.init(jax.random.key(1), dataset, pool=pool)
    seen["badge"] = baal.run(other, None, dataset, TEST, state=first, num_rounds=2)[1].indices
    return jax.tree.map(lambda leaf: np.round(np.asarray(leaf), 4).tolist(), seen)


def process(folder, port, rank, count):
    """One of several processes, each with two devices."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
    mesh = jax.make_mesh((len(jax.devices()),), ("pool",), axis_types=(AxisType.Explicit,))
    print(json.dumps(rounds(lambda dataset: data.shard(dataset, mesh, axis="pool"), folder)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return rounds(lambda dataset: dataset, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("kind", ["Auto", "Explicit", "Explicit and set"])
def test_a_mesh_changes_no_pick(kind, alone, tmp_path):
    mesh = jax.make_mesh((4,), ("pool",), axis_types=(getattr(AxisType, kind.split()[0]),))
    with jax.set_mesh(mesh) if "set" in kind else nullcontext():
        assert rounds(lambda dataset: data.shard(dataset, mesh), tmp_path) == alone


@pytest.mark.parametrize("count", [2, 4])
def test_processes_change_no_pick(count, alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}"}
    command = [sys.executable, "-m", "tests.test_meshes", str(tmp_path), str(port)]
    options = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["cwd"] = Path(__file__).parents[1]
    started = [subprocess.Popen([*command, str(rank), str(count)], **options) for rank in range(count)]
    for one in started:
        out, err = one.communicate(timeout=600)
        assert one.returncode == 0, err
        assert json.loads(out.splitlines()[-1]) == alone


def test_a_fit_is_parallel_over_data(mesh):
    trainer = baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=30, batch_size=16)
    posterior = posteriors.mc_dropout(baal.from_linen(networks.LinenPosition()), trainer)
    dataset = baal.Dataset(INPUTS, TARGETS.astype(np.int32))
    on_one = posterior.fit(jax.random.key(0), dataset, np.arange(SIZE) < 100)
    on_four = posterior.fit(jax.random.key(0), data.shard(dataset, mesh), np.arange(SIZE + 3) < 100)
    np.testing.assert_allclose(on_four.loss, on_one.loss, rtol=1e-5)


def test_a_sharded_round_moves_picks_and_parameters_but_not_the_pool():
    mesh, moved = jax.make_mesh((4,), ("pool",), axis_types=(AxisType.Auto,)), {}
    trainer = baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=3, batch_size=8)
    network = posteriors.mc_dropout(baal.from_linen(networks.LinenPosition()), trainer)
    drawn = baal.Posterior(means, draws, outputs)
    for size in (2000, 8000):
        inputs = np.resize(INPUTS, (size, 5))
        dataset = data.shard(baal.Dataset(inputs, np.arange(size) % 3), mesh, axis="pool")
        for name, posterior, picks in (("power", network, selection.power()), ("badge", drawn, selection.badge())):
            features = lambda state, inputs: inputs  # noqa: E731
            loop = baal.active_loop(posterior, picks, query_size=4, num_samples=2, features=features)
            state = loop.init(jax.random.key(0), dataset, num_initial=4)
            with jax.set_mesh(mesh):
                text = jax.jit(lambda *given, loop=loop: loop.step(*given)).lower(state, dataset).compile().as_text()
            moved[name, size] = bytes_between_devices(text)
    assert 0 < moved["power", 2000] == moved["power", 8000] < 8000
    assert 0 < moved["badge", 2000] == moved["badge", 8000] < 8000


def bytes_between_devices(text):
    kinds = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter|collective-broadcast"
    shapes = "".join(re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", text))
    sizes = [
        (kind, [int(size) for size in dims.split(",") if size])
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    return sum(BYTES[kind] * int(np.prod(dims, dtype=int)) for kind, dims in sizes)


def test_explicit_axes_stay_explicit_outside_and_in_a_jit_of_ones_own():
    mesh = jax.make_mesh((4,), ("pool",), axis_types=(AxisType.Explicit,))
    split = NamedSharding(mesh, PartitionSpec(None, "pool"))
    logits = jax.device_put(np.asarray(RNG.normal(size=(3, 8, 2)), np.float32), split)
    scores = heuristics.bald(logits)
    assert scores.sharding.mesh.axis_types == (AxisType.Explicit,)
    with jax.set_mesh(mesh):
        inside = jax.jit(lambda logits: baal.select(jax.random.key(0), selection.top_k(), logits, query_size=2).indices)
        picked = inside(logits)
        np.testing.assert_allclose(jax.jit(heuristics.bald)(logits), scores, atol=1e-6)
    assert picked.tolist() == np.argsort(-np.asarray(scores))[:2].tolist()


def test_padding_is_said_and_never_picked():
    mesh = jax.make_mesh((4,), ("pool",), axis_types=(AxisType.Auto,))
    padded = data.shard(baal.Dataset({"x": INPUTS[:5]}, np.arange(5.0)), mesh, axis=("pool",))
    assert (padded.size, padded.inputs["x"].shape, padded.targets.tolist()) == (5, (8, 5), [0, 1, 2, 3, 4, 4, 4, 4])
    assert "size=5" in repr(padded)
    pool = baal.pool.placed(baal.pool.init(5), 5, 8, padded.inputs)
    assert baal.pool.available(pool).tolist() == [True] * 5 + [False] * 3
    even = data.shard(baal.Dataset(INPUTS[:8]), mesh)
    assert isinstance(even, baal.Dataset)
    assert [shard.data.shape for shard in even.inputs.addressable_shards] == [(2, 5)] * 4
    with pytest.raises(ValueError, match="axis='model' is none of the mesh: choose among pool"):
        data.shard(baal.Dataset(INPUTS), mesh, axis="model")
    with pytest.raises(ValueError, match="are not finite in 1 of 8 rows"):
        data.shard(baal.Dataset(np.where(np.arange(8)[:, None] == 3, np.nan, INPUTS[:8])), mesh)


if __name__ == "__main__":
    process(sys.argv[1], *map(int, sys.argv[2:]))
