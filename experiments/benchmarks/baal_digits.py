"""One round of active learning on digits: baal_jax against Baal (PyTorch), same data, network, steps and first labels.

Network 64-256-256-10 with dropout .5, 300 Adam steps of 32, 20 draws over the 1,437 images of the pool, 10 labels a
round. Prints the median time of a round on both sides, its ratio, the share of the arithmetic limit, and with
``--seeds`` checks that the learning curves agree. Needs torch, baal and torchmetrics beside the extra ``bench``.

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

STEPS, BATCH, DRAWS, QUERY, INITIAL = 300, 32, 20, 10, 20
MULTIPLICATIONS = 64 * 256 + 256 * 256 + 256 * 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Baal against baal_jax, a round of active learning on digits."""

    rounds: int = 20
    """Rounds of a run."""

    seeds: int = 1
    """Runs on each side; from 2 on the learning curves are compared."""

    workers: tuple[int, ...] = (0,)
    """Loader processes of Baal: 0 is its best setting here, 4 its default."""

    repeats: int = 3
    """Timed runs of baal_jax after the one that compiles."""

    whole_batches: bool = False
    """Baal reads one stream of shuffled passes, as baal_jax does. Its own epochs end with the batch of the remainder:
    as many steps with fewer examples, the last one of 2 examples where 130 are labelled."""

    first: str = ""
    """First labels of every seed as JSON, drawn from the seed if empty."""

    side: Literal["both", "baal", "jax"] = "both"
    """Used by the script itself to give each side a process of its own."""


def main(config: Config) -> None:
    """Runs both sides, each in its own process, and compares."""
    if config.side != "both":
        run = run_baal if config.side == "baal" else run_jax
        print("RESULT " + json.dumps(run(config)))
        return
    ours = in_process(config, "jax")
    rate = ours["gemm_flops_per_second"]
    floor = (6 * STEPS * BATCH * MULTIPLICATIONS + 2 * DRAWS * 1437 * MULTIPLICATIONS) / rate
    print(f"matrix multiplication {rate / 1e9:.0f} GFLOP/s: the arithmetic of a round alone takes {floor * 1e3:.0f} ms")
    print(
        f"baal_jax {ours['seconds'] * 1e3:.1f} ms a round ({floor / ours['seconds']:.0%} of that limit), "
        f"fit {ours['fit'] * 1e3:.1f} ms, score {ours['score'] * 1e3:.1f} ms, compilation {ours['compile']:.1f} s once"
    )
    for workers in config.workers:
        few = workers > 0  # tens of seconds a round
        theirs = in_process(
            dataclasses.replace(
                config, workers=(workers,), seeds=1 if few else config.seeds, rounds=3 if few else config.rounds
            ),
            "baal",
        )
        ratio = theirs["seconds"] / ours["seconds"]
        print(f"Baal, workers={workers}: {theirs['seconds']:.3f} s a round, ratio {ratio:.1f}")
        if not few and config.seeds > 1:
            compare(np.array(ours["accuracy"]), np.array(theirs["accuracy"]))


def in_process(config: Config, side: str) -> dict:
    """One side's result, from a fresh interpreter."""
    arguments = [
        f"--rounds={config.rounds}",
        f"--seeds={config.seeds}",
        f"--repeats={config.repeats}",
        f"--first={config.first}",
        f"--side={side}",
        "--whole-batches" if config.whole_batches else "--no-whole-batches",
    ]
    command = [sys.executable, __file__, *arguments, "--workers", *map(str, config.workers)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])


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


def run_jax(config: Config) -> dict:
    """baal_jax: the whole run is one compiled program."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import jax
    import jax.numpy as jnp
    import optax
    from models import MLP

    import baal_jax as baal
    from baal_jax import heuristics, losses, pool, posteriors, selection

    train, test = jax.tree.map(jnp.asarray, baal.data.digits())
    trainer = baal.trainer(optax.adam(1e-3), losses.cross_entropy, num_steps=STEPS, batch_size=BATCH)
    posterior = posteriors.mc_dropout(baal.from_linen(MLP()), trainer)
    loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=QUERY, num_samples=DRAWS)

    def start(seed: int) -> baal.LoopState:
        return loop.init(jax.random.key(seed), train, pool=pool.label(pool.init(1437), first_labels(seed)))

    def seconds(function, *arguments) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        return time.perf_counter() - begin

    rounds = jax.jit(lambda state: baal.run(loop, None, train, num_rounds=config.rounds, state=state))
    compile_time = seconds(rounds, start(0))
    times = [seconds(rounds, start(0)) / config.rounds for _ in range(config.repeats)]
    state, _ = rounds(start(0))
    labelled = pool.labelled(state.pool)
    fit = lambda: posterior.fit(jax.random.key(0), train, labelled)  # noqa: E731
    score = lambda: baal.score(jax.random.key(0), posterior, state.posterior, train.inputs, heuristics.bald)  # noqa: E731
    parts = {name: np.median([seconds(part) for _ in range(6)][1:]) for name, part in (("fit", fit), ("score", score))}
    square = jnp.ones((2048, 2048))
    gemm = np.median([seconds(jax.jit(jnp.matmul), square, square) for _ in range(12)][2:])
    accuracy = []
    if config.seeds > 1:
        evaluated = jax.jit(lambda state: baal.run(loop, None, train, test, num_rounds=config.rounds, state=state)[1])
        accuracy = [np.asarray(evaluated(start(s)).metrics["accuracy"]).tolist() for s in range(config.seeds)]
    return {
        "seconds": float(np.median(times)),
        "compile": compile_time - float(np.median(times)) * config.rounds,
        "fit": float(parts["fit"]),
        "score": float(parts["score"]),
        "gemm_flops_per_second": 2 * 2048**3 / float(gemm),
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

    import baal_jax as baal

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
            wrapper = ModelWrapper(
                module,
                TrainingArgs(
                    optimizer=torch.optim.Adam(module.parameters(), 1e-3),
                    criterion=nn.CrossEntropyLoss(),
                    batch_size=BATCH,
                    epoch=1 if config.whole_batches else round(STEPS / -(-len(active) // BATCH)),
                    use_cuda=False,
                    workers=config.workers[0],
                ),
            )
            loop = ActiveLearningLoop(
                active, wrapper.predict_on_dataset, BALD(), query_size=QUERY, iterations=DRAWS, verbose=False
            )
            begin = time.perf_counter()
            wrapper.train_on_dataset(Stream(active) if config.whole_batches else active)
            loop.step()
            times.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            logits = torch.tensor(wrapper.predict_on_dataset(test, iterations=DRAWS, verbose=False))
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
