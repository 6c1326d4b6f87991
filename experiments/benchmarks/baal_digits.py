"""One round of active learning on digits: baal_jax against Baal (PyTorch), same data, network, steps and first labels.

Network 64-256-256-10 with dropout .5, 300 Adam steps of 32, 20 draws over the 1,437 images of the pool, 10 labels a
round. Prints the median time of a round on both sides, its ratio, the share of the arithmetic limit, and with
``--seeds`` checks that the learning curves agree. Needs torch, baal and torchmetrics beside the extra ``bench``.

    python experiments/benchmarks/baal_digits.py --workers 0 4
    python experiments/benchmarks/baal_digits.py --seeds 10
    python experiments/benchmarks/baal_digits.py --posteriors mc_dropout laplace swag gaussian_process

A round takes .119 s, Baal with workers=0 6.1 times and with workers=4 (its default) 298 times as long. Two cores of an
AMD EPYC with AVX-512 (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from measuring import hand_over, in_process, matmul_rate, median_seconds, timed
from models import MLP

import baal_jax as baal
from baal_jax import heuristics, losses, pool, posteriors, selection

STEPS, BATCH, DRAWS, QUERY, INITIAL = 300, 32, 20, 10, 20
MULTIPLICATIONS = 64 * 256 + 256 * 256 + 256 * 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Baal against baal_jax, a round of active learning on digits.

    Attributes:
        rounds: of a run.
        seeds: runs on each side; from 2 on the learning curves are compared.
        workers: loader processes of Baal: 0 is its best setting here, 4 its default.
        repeats: timed runs of baal_jax after the one that compiles.
        whole_batches: Baal reads one stream of shuffled passes, as baal_jax does. Its own epochs end with the batch of
            the remainder: as many steps with fewer examples, the last one of 2 examples where 130 are labelled.
        posteriors: rounds and fits of these instead, by turns in one process, with the same trainer.
        labels: of these rounds, one number after the other.
        first: first labels of every seed as JSON, drawn from the seed if empty.
        side: used by the script itself to give each side a process of its own.
    """

    rounds: int = 20
    seeds: int = 1
    workers: tuple[int, ...] = (0,)
    repeats: int = 3
    whole_batches: bool = False
    posteriors: tuple[str, ...] = ()
    labels: tuple[int, ...] = (20, 200, 500)
    first: str = ""
    side: Literal["both", "baal", "jax"] = "both"


def main(config: Config) -> None:
    """Runs both sides, each in its own process, and compares."""
    if config.posteriors:
        compare_posteriors(config)
        return
    if config.side != "both":
        hand_over((run_baal if config.side == "baal" else run_jax)(config))
        return
    ours = in_process(__file__, dataclasses.replace(config, side="jax"))
    rate = ours["gemm_flops_per_second"]
    floor = (6 * STEPS * BATCH + 2 * DRAWS * 1437) * MULTIPLICATIONS / rate
    print(f"matrix multiplication {rate / 1e9:.0f} GFLOP/s: the arithmetic of a round alone takes {floor * 1e3:.0f} ms")
    print(
        f"baal_jax {ours['seconds'] * 1e3:.1f} ms a round ({floor / ours['seconds']:.0%} of that limit), "
        f"fit {ours['fit'] * 1e3:.1f} ms, score {ours['score'] * 1e3:.1f} ms, compilation {ours['compile']:.1f} s once"
    )
    for workers in config.workers:
        few = {"seeds": 1, "rounds": 3} if workers > 0 else {}  # tens of seconds a round
        theirs = in_process(__file__, dataclasses.replace(config, side="baal", workers=(workers,), **few))
        ratio = theirs["seconds"] / ours["seconds"]
        print(f"Baal, workers={workers}: {theirs['seconds']:.3f} s a round, ratio {ratio:.1f}")
        if not few and config.seeds > 1:
            compare(np.array(ours["accuracy"]), np.array(theirs["accuracy"]))


def compare(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The equality check: mean differences within two of their standard errors, in pairs of the same first labels."""
    difference = ours - theirs
    columns = np.concatenate([difference, difference.mean(axis=1, keepdims=True)], axis=1)  # rounds, whole curve
    gaps = columns.mean(axis=0) / (columns.std(axis=0, ddof=1) / len(columns) ** 0.5)
    print("labels    baal_jax      Baal   difference in standard errors")
    for r in range(ours.shape[1]):
        print(f"{INITIAL + QUERY * r:6d}{ours[:, r].mean():12.4f}{theirs[:, r].mean():10.4f}{gaps[r]:12.2f}")
    within = np.mean(np.abs(gaps[:-1]) <= 2)
    print(f"{within:.0%} of rounds within two standard errors; mean accuracies of the whole curve are")
    print(f"{ours.mean():.4f} and {theirs.mean():.4f}, a difference of {gaps[-1]:.2f} standard errors")


def first_labels(seed: int) -> np.ndarray:
    """Ids labelled before the first round, the same on both sides."""
    return np.random.default_rng(seed).choice(1437, INITIAL, replace=False)


def compare_posteriors(config: Config) -> None:
    """Milliseconds of a compiled step and of its fit alone: median, least, and median of all cores together."""
    train = jax.tree.map(jnp.asarray, baal.data.digits()[0])
    trainer = baal.trainer(optax.adam(1e-3), losses.cross_entropy, num_steps=STEPS, batch_size=BATCH)
    build = posteriors.REGISTRY | {
        "gaussian_process": lambda *_: posteriors.gaussian_process(posteriors.kernels.dense(2), num_classes=10),
        "logistic_regression": lambda *_: posteriors.logistic_regression(),
    }
    for labels in config.labels:
        calls = {}
        first = pool.label(pool.init(1437), np.random.default_rng(0).choice(1437, labels, replace=False))
        for name in config.posteriors:
            posterior = build[name](baal.from_linen(MLP()), trainer)
            loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=QUERY, num_samples=DRAWS)
            state = loop.step(loop.init(jax.random.key(0), train, pool=first), train)[0]
            calls[name, "round"] = partial(loop.step, state, train)
            calls[name, "fit"] = partial(posterior.fit, jax.random.key(0), train, pool.labelled(state.pool))
            jax.block_until_ready([call() for call in (calls[name, "round"], calls[name, "fit"])])
        spent = []
        for _ in range(config.repeats):
            for call in calls.values():
                begin = time.process_time()
                spent.append((timed(call)[1], time.process_time() - begin))
        spent = 1e3 * np.array(spent).reshape(config.repeats, len(calls), 2)
        for (name, part), (median, cores), least in zip(calls, np.median(spent, 0), spent.min(0)[:, 0], strict=True):
            print(f"{labels:4d} {name:20} {part:6}{median:9.1f}{least:9.1f}{cores:9.1f}", flush=True)


def make_loop(shared_masks: bool = True) -> tuple[baal.Posterior, baal.ActiveLoop]:
    """The loop of baal_jax and its posterior."""
    trainer = baal.trainer(optax.adam(1e-3), losses.cross_entropy, num_steps=STEPS, batch_size=BATCH)
    posterior = posteriors.mc_dropout(baal.from_linen(MLP()), trainer, shared_masks=shared_masks)
    acquisition = selection.top_k(heuristics.bald)
    return posterior, baal.active_loop(posterior, acquisition, query_size=QUERY, num_samples=DRAWS)


def run_jax(config: Config) -> dict:
    """baal_jax: the whole run is one compiled program."""
    train, test = jax.tree.map(jnp.asarray, baal.data.digits())
    key, (posterior, loop) = jax.random.key(0), make_loop()

    def start(seed: int) -> baal.LoopState:
        return loop.init(jax.random.key(seed), train, pool=pool.label(pool.init(1437), first_labels(seed)))

    rounds = jax.jit(lambda state: baal.run(loop, None, train, num_rounds=config.rounds, state=state))
    first = start(0)
    (state, _), first_call = timed(lambda: rounds(first))
    seconds = median_seconds(lambda: rounds(first), config.repeats)
    labelled = pool.labelled(state.pool)
    score = lambda: baal.score(key, posterior, state.posterior, train.inputs, heuristics.bald)  # noqa: E731
    accuracy = []
    if config.seeds > 1:
        evaluated = jax.jit(lambda state: baal.run(loop, None, train, test, num_rounds=config.rounds, state=state)[1])
        accuracy = [np.asarray(evaluated(start(s)).metrics["accuracy"]).tolist() for s in range(config.seeds)]
    return {
        "seconds": seconds / config.rounds,
        "compile": first_call - seconds,
        "fit": median_seconds(lambda: posterior.fit(key, train, labelled), 5),
        "score": median_seconds(score, 5),
        "gemm_flops_per_second": matmul_rate(),
        "accuracy": accuracy,
    }


def run_baal(config: Config) -> dict:
    """Baal 2: its active data set, wrapper, patched network and loop."""
    import logging

    import structlog
    import torch
    from baal.active.active_loop import ActiveLearningLoop
    from baal.active.dataset import ActiveLearningDataset
    from baal.active.heuristics import BALD
    from baal.bayesian.dropout import patch_module
    from baal.modelwrapper import ModelWrapper, TrainingArgs
    from torch import nn
    from torch.utils.data import Dataset, TensorDataset

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    first = json.loads(config.first or "null") or [first_labels(seed) for seed in range(config.seeds)]
    train, test = (TensorDataset(torch.tensor(d.inputs), torch.tensor(d.targets).long()) for d in baal.data.digits())

    def network() -> nn.Module:
        layers = [nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5)]
        module = nn.Sequential(*layers, nn.Linear(256, 10))
        for layer in module:
            if isinstance(layer, nn.Linear):  # the initial weights of flax
                deviation = layer.in_features**-0.5 / 0.87962566103423978
                nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
                nn.init.zeros_(layer.bias)
        return patch_module(module)

    class Stream(Dataset):
        """As many examples as the steps take, from shuffled passes one after the other, whatever index is asked for."""

        def __init__(self, examples: Dataset) -> None:
            self.examples, self.ahead = examples, []

        def __len__(self) -> int:
            return STEPS * BATCH

        def __getitem__(self, index: int) -> tuple:
            if not self.ahead:
                self.ahead = torch.randperm(len(self.examples)).tolist()
            return self.examples[self.ahead.pop()]

    def one_run(seed: int) -> tuple[list[float], list[float], list[float]]:
        torch.manual_seed(seed)
        mask = np.zeros(1437, bool)
        mask[first[seed]] = True
        active = ActiveLearningDataset(train, labelled=mask)
        times, evaluated, accuracy = [], [], []
        for _ in range(config.rounds):
            module = network()
            optimizer, criterion = torch.optim.Adam(module.parameters(), 1e-3), nn.CrossEntropyLoss()
            epochs = 1 if config.whole_batches else round(STEPS / -(-len(active) // BATCH))
            options = {"batch_size": BATCH, "epoch": epochs, "use_cuda": False, "workers": config.workers[0]}
            wrapper = ModelWrapper(module, TrainingArgs(optimizer=optimizer, criterion=criterion, **options))
            predict, size = wrapper.predict_on_dataset, {"query_size": QUERY, "iterations": DRAWS}
            loop = ActiveLearningLoop(active, predict, BALD(), **size, verbose=False)
            begin = time.perf_counter()
            wrapper.train_on_dataset(Stream(active) if config.whole_batches else active)
            loop.step()
            times.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            logits = torch.tensor(predict(test, iterations=DRAWS, verbose=False))
            accuracy.append((logits.softmax(1).mean(-1).argmax(1) == test.tensors[1]).float().mean().item())
            evaluated.append(times[-1] + time.perf_counter() - begin)
        return times, evaluated, accuracy

    times, evaluated, accuracy = zip(*(one_run(seed) for seed in range(config.seeds)), strict=True)
    return {
        "seconds": float(np.median(times)),
        "seconds_evaluated": float(np.median(evaluated)),
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
