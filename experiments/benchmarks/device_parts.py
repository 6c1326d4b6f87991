"""The programs that device.py measures: functions, arguments, pieces without loops, and peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import epig as epig_forms
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from batch_bald import pool as log_probs_of_pool
from batch_bald import redux
from measuring import median_seconds, timed
from models import MLP, VGG16

import baal_jax as baal
from baal_jax import Predictions, heuristics, losses, posteriors, selection
from baal_jax.selection import _batch_bald

SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "stages": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)), "hidden": (4096, 4096),
        "images": 4096, "batch": 256, "draws": 20, "pool": 50_000, "query": 100, "width": 512, "score_draws": 100,
        "rows": 10_000_000, "configurations": 10_000, "seeds": 32, "rounds": 5, "steps": 300, "matmul": 8192,
        "copy": 1024,
    },
    "small": {
        "stages": ((8, 8), (16, 16)), "hidden": (16,), "images": 32, "batch": 16, "draws": 2, "pool": 300, "query": 5,
        "width": 16, "score_draws": 8, "rows": 10_000, "configurations": 100, "seeds": 2, "rounds": 2, "steps": 5,
        "matmul": 256, "copy": 4,
    },
}  # fmt: skip


class Work(NamedTuple):
    """A program to be measured."""

    function: Callable
    arguments: tuple
    pieces: tuple[tuple[Callable, tuple, float], ...] = ()  # without loops, and how often each runs; else the program
    peer: Callable[[Any], tuple[str, float] | None] = lambda outputs: None  # checks our outputs: another form, seconds


def normal(*shape: int) -> jax.Array:
    """On the device from the start: pools of an accelerator are large."""
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def vgg(size: dict) -> Work:
    """BALD of images; beside a jitted pass for every draw."""
    x, batch, draws = normal(size["images"], 32, 32, 3), size["batch"], size["draws"]
    model = baal.from_linen(VGG16(hidden=size["hidden"], stages=size["stages"]))
    posterior = posteriors.mc_dropout(model, baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1))
    state = baal.TrainState(model.init(jax.random.key(0), x[:1]), (), jnp.int32(0), jnp.float32(0))

    def score(state: Any, x: jax.Array, batch_size: int | None = batch) -> jax.Array:
        options: dict[str, Any] = {"num_samples": draws, "batch_size": batch_size}
        return baal.score(jax.random.key(1), posterior, state, x, heuristics.bald, **options)

    def peer(scores: jax.Array) -> tuple[str, float]:
        one_pass = jax.jit(model.apply)
        keys = jax.random.split(jax.random.key(1), draws)
        naive = lambda: heuristics.bald(jnp.stack([one_pass(state.variables, x[:batch], key) for key in keys]))  # noqa: E731
        np.testing.assert_allclose(scores[:batch], naive(), atol=1e-3 if jax.default_backend() == "cpu" else 3e-2)
        return "a jitted pass for every draw", median_seconds(naive, 3) * len(x) / batch

    return Work(score, (state, x), ((partial(score, batch_size=None), (state, x[:batch]), len(x) / batch),), peer)


def batch_bald(size: dict) -> Work:
    """Ten picks; beside batchbald_redux, where it is installed."""
    num, draws, kept = size["pool"] // 5, size["score_draws"], size["configurations"]
    log_probs = log_probs_of_pool("mixed", num, draws, 10)
    pick = partial(_batch_bald.greedy, query_size=10, num_kept=kept)
    given = jax.random.key(0), jnp.asarray(log_probs), jnp.ones(num, bool)
    evaluated = np.asarray(jax.jit(lambda *given: pick(*given)[1])(*given), float)  # another program than the one timed
    joint, p = jnp.ones((kept, draws)), jnp.ones((draws, 10 * 100))
    turns = sum(count * min(10.0**turn, kept) for turn, count in enumerate(evaluated)) / (100 * kept)

    def peer(outputs: Any) -> tuple[str, float] | None:
        try:
            return "batchbald_redux", timed(lambda: redux(log_probs, 10, kept))[1]
        except ImportError:
            return None

    return Work(pick, given, ((jnp.matmul, (joint, p), turns),), peer)  # products alone, not their logarithms


def badge(size: dict) -> Work:
    """Picks from factors of gradients; beside one pick after the other in NumPy."""
    num, width, query = size["pool"], size["width"], size["query"]
    acquisition = selection.badge()
    summary = jax.jit(acquisition.summarise)(Predictions(2 * normal(1, num, 10), jnp.maximum(normal(num, width), 0)))
    given = jax.random.key(0), summary, jnp.ones(num, bool)

    def distances(left: Any, right: Any) -> Any:
        both = (left**2).sum(1) * (right**2).sum(1)
        return both + both[0] - 2 * (left @ left[0]) * (right @ right[0])

    def in_numpy(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        rng, nearest = np.random.default_rng(0), np.maximum(distances(left, right), 0)
        for _ in range(query - 1):
            pick = rng.choice(num, p=nearest / nearest.sum())
            inner = (left @ left[pick]) * (right @ right[pick])
            both = (left**2).sum(1) * (right**2).sum(1)
            nearest = np.minimum(nearest, np.maximum(both + both[pick] - 2 * inner, 0))
        return nearest

    def peer(outputs: Any) -> tuple[str, float]:
        assert len(np.unique(outputs.indices)) == query  # random picks: what they are differs
        return "NumPy", timed(lambda: in_numpy(*(np.asarray(part, np.float64) for part in summary)))[1]

    return Work(lambda *given: acquisition.select(*given, query), given, ((distances, tuple(summary), query),), peer)


def epig(size: dict) -> Work:
    """Of 100 targets; beside the broadcast form, from some of them and some of the pool."""
    num, draws = size["pool"] // 5, size["score_draws"]
    logits, targets = 2 * normal(draws, num, 10), 2 * normal(draws, 100, 10)
    rows, columns = normal(10 * num, draws), normal(draws, 10 * 10)

    def peer(scores: jax.Array) -> tuple[str, float]:
        few = slice(0, num // 10)
        form = lambda: epig_forms.xla_form(logits[:, few], targets)  # noqa: E731
        np.testing.assert_allclose(scores[few], form(), atol=1e-4 if jax.default_backend() == "cpu" else 1e-2)
        return "broadcast form, compiled", median_seconds(form, 1) * 10

    return Work(heuristics.epig, (logits, targets), ((jnp.matmul, (rows, columns), 10),), peer)


def top_k(size: dict) -> Work:
    """Of many scores, exactly; beside NumPy's partition."""
    scores, query = normal(size["rows"]), size["query"]
    select = selection.top_k().select

    def peer(outputs: Any) -> tuple[str, float]:
        on_host = np.asarray(scores)
        best = lambda: np.argpartition(-on_host, query)[:query]  # noqa: E731
        assert set(best().tolist()) == set(np.asarray(outputs.indices).tolist())
        return "NumPy's argpartition", median_seconds(best, 3)

    given = jax.random.key(0), scores, jnp.ones(len(scores), bool)
    return Work(lambda *given: select(*given, query), given, ((lambda x: x + 1, (scores,), 0.5),), peer)  # read once


def curve(size: dict, network: Any, train: baal.Dataset, test: baal.Dataset, seeds: int, labels: int) -> Work:
    """Rounds of several seeds, evaluated, in one program: one after the other on a CPU, else side by side."""
    model, batch = baal.from_linen(network), min(size["batch"], len(train.inputs))
    trainer = baal.trainer(optax.adam(1e-3), losses.cross_entropy, num_steps=size["steps"], batch_size=32)
    options: dict[str, Any] = {"num_samples": size["draws"], "batch_size": batch}
    posterior = posteriors.mc_dropout(model, trainer)
    loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=labels, **options)
    keys = jax.random.split(jax.random.key(0), seeds)
    states = jax.vmap(lambda key: loop.init(key, train, 2 * labels))(keys)
    run = lambda state, *data: baal.run(loop, None, *data, state=state, num_rounds=size["rounds"])[1]  # noqa: E731
    state = jax.tree.map(lambda leaf: leaf[0], states.posterior)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        outputs, _ = model.train(state.variables._replace(params=params), x, jax.random.key(0))
        return outputs.sum()

    rounds, passes = seeds * size["rounds"], (len(train.inputs) + len(test.inputs)) / batch
    predict = lambda x: baal.predict(jax.random.key(0), posterior, state, x, **options | {"batch_size": None})  # noqa: E731
    step = jax.grad(loss), (state.variables.params, train.inputs[:32]), rounds * size["steps"]
    pass_ = predict, (train.inputs[:batch],), rounds * passes
    return Work(harness.over_seeds(run), (states, train, test), (step, pass_))


def digits(size: dict) -> Work:
    """Seeds of the study of the README's size."""
    return curve(size, MLP(), *jax.tree.map(jnp.asarray, baal.data.digits()), size["seeds"], 10)


def cifar10(size: dict) -> Work:
    """Synthetic images and classes: the speed of a fit does not depend on what is to be seen."""
    pixels = jax.random.randint(jax.random.key(0), (2 * size["images"], 32, 32, 3), 0, 256).astype(jnp.uint8)
    train, test = (baal.Dataset(x, jnp.arange(len(x), dtype=jnp.int32) % 10) for x in jnp.split(pixels, 2))
    return curve(
        size, VGG16(hidden=size["hidden"][-1:], stages=size["stages"]), train, test, 1, min(100, size["images"] // 8)
    )


PARTS: dict[str, Callable[[dict], Work]] = {
    "vgg": vgg, "batch_bald": batch_bald, "badge": badge, "epig": epig, "top_k": top_k, "digits": digits,
    "cifar10": cifar10,
}  # fmt: skip
