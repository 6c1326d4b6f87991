"""Does BALD with MC-dropout need fewer labels than random labelling on CIFAR-10?

The experiment of the original library's README, as one compiled program a round: VGG16 with dropout in its head, 1,000
random labels to begin with, then the images that the draws disagree on most. Every strategy shares the trainer, the
keys and the first labels. Writes a line of JSON a round, learning curves, a calibration diagram, the classes that were
asked for, and a gallery of the most and the least informative images.

Every round is checkpointed: killed at any moment and started again with the same command, a run ends with the same
results, bit for bit.

    python experiments/vgg_mcdropout_cifar10.py --preset original        # the original's settings
    python experiments/vgg_mcdropout_cifar10.py                       # a trainer that trains well, for accelerators
    python experiments/vgg_mcdropout_cifar10.py --model small --subset 10000               # for a CPU

Result, hardware and command: see docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from cifar10_report import gallery, report
from models import VGG16, SmallCNN, SmallCNNnnx, WideResNet
from strategies import acquisition, heuristic
from tqdm import tqdm

import baal_jax as baal
from baal_jax import checkpoint, losses, metrics, posteriors
from baal_jax.training import augmentation

ModelName = Literal["vgg16", "vgg16_small_head", "wide_resnet", "small", "small_nnx"]


@dataclasses.dataclass(frozen=True)
class Config:
    """BALD against random labelling on CIFAR-10."""

    preset: Literal["original", "modern"] = "modern"
    """Where the defaults below come from: the original experiment, or a trainer that trains well. They also depend on
    the model: small ones get a trainer for CPUs."""

    model: ModelName = "vgg16_small_head"
    """VGG16 with the original's 4096-4096 head or with a small one, WRN-16-4, or a small network for CPUs (also
    as nnx)."""

    strategies: tuple[str, ...] = ("random", "bald")
    """"random", a heuristic by name, or a stochastic selection and a heuristic, such as "power_bald"."""

    seeds: int = 3
    """Independent runs of every strategy; runs with the same number share their first labels."""

    dataset: Literal["cifar10", "digits"] = "cifar10"
    """"digits" tries the machinery without CIFAR-10: 8×8 images, small models only."""

    data_dir: Path | None = None
    """Where CIFAR-10 lies; by default where TFDS keeps it."""

    subset: int | None = None
    """Only this many of the training images, the same ones for everybody."""

    num_test: int | None = None
    """Only this many of the test images."""

    num_initial: int = 1000
    """Labels drawn at random before the first round."""

    query_size: int = 900
    """Labels added each round."""

    rounds: int = 11
    """Fits of the network; the last one sees num_initial + (rounds - 1) * query_size labels."""

    num_samples: int = 20
    """Monte-Carlo dropout draws, for scoring and for the Bayesian model average."""

    max_sample: int | None = None
    """Score only this many available images, drawn at random each round."""

    num_epochs: int | None = None
    """Passes over the labelled images in a fit, or"""

    num_steps: int | None = 4000
    """steps of a fit."""

    batch_size: int = 128
    """Labelled images in a step."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD has Nesterov momentum where it has weight decay."""

    learning_rate: float = 0.05
    """Its peak, where there is a schedule."""

    momentum: float = 0.9
    """Of SGD."""

    weight_decay: float = 5e-4
    """L2 for SGD, decoupled for AdamW."""

    schedule: Literal["constant", "cosine", "onecycle"] = "onecycle"
    """Of the learning rate over one fit; needs num_steps unless constant."""

    label_smoothing: float = 0.0
    """Of the training loss."""

    average_from: float | None = 0.75
    """Stochastic weight averaging from this share of the steps on."""

    augment: tuple[Literal["flip", "shift", "cutout"], ...] = ("flip", "shift", "cutout")
    """What training images go through."""

    batch_norm: bool = True
    """Batch normalisation in VGG16 and in the small network."""

    rate: float = 0.5
    """Dropout rate."""

    bfloat16: bool = False
    """Compute in bfloat16; parameters and outputs stay float32."""

    warm_start: bool = False
    """Continue from the weights of the round before instead of starting afresh."""

    coldness: float = 1.0
    """Of stochastic selections."""

    predict_batch_size: int = 256
    """Images in work at a time when predicting; changes no number."""

    seeds_at_once: int | None = None
    """Seeds in one program. By default one on a CPU, and on an accelerator as many as its memory holds."""

    seed: int = 0
    """Of everything."""

    out: Path = Path("results/cifar10")
    """Folder for results and checkpoints."""


def preset(name: str, model: str) -> Config:
    """The defaults for a preset and a model."""
    if name == "original":
        base = Config(
            preset="original", model="vgg16", query_size=100, rounds=20, num_epochs=20, num_steps=None, batch_size=32,
            learning_rate=1e-3, weight_decay=0.0, schedule="constant", average_from=None, augment=("flip",),
            batch_norm=False,
        )  # fmt: skip
    else:
        base = Config()
    if name == "modern" and model in ("small", "small_nnx"):
        base = dataclasses.replace(base, **CPU)
    return dataclasses.replace(base, model=model)


CPU: dict[str, Any] = {
    "num_initial": 500,
    "query_size": 500,
    "rounds": 5,
    "num_steps": 1500,
    "batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 1e-3,
    "augment": ("flip",),
}
"""A trainer that a CPU can afford."""


class Job(NamedTuple):
    """Seeds of one strategy that run in one program."""

    strategy: str
    seeds: list[int]


class Run(NamedTuple):
    """What all jobs share."""

    config: Config
    train: baal.Dataset
    test: baal.Dataset
    class_names: tuple[str, ...]
    posterior: baal.Posterior
    loops: dict[str, baal.ActiveLoop]
    programs: dict[str, Any]  # compiled for one round of several seeds


def main(config: Config) -> dict:
    """Runs, or goes on with, all jobs, then reports."""
    run = prepare(config)
    size = config.seeds_at_once or seeds_of_before(config.out) or seeds_that_fit(run)
    chunks = [list(range(i, min(i + size, config.seeds))) for i in range(0, config.seeds, size)]
    jobs = [Job(name, chunk) for name in config.strategies for chunk in chunks]
    jax.eval_shape(lambda: first_states(run, jobs[0]))  # refuses numbers that do not fit, before anything is written
    config.out.mkdir(parents=True, exist_ok=True)
    with checkpoint.checkpointer(config.out / "checkpoints", identity(config, run, size)) as saved:
        done = saved.latest or 0
        journal = config.out / "rounds.jsonl"
        position, offset = divmod(done, config.rounds)
        # A finished job also has a closing line; the one of the last finished job is written again below.
        checkpoint.keep_lines(journal, done + position - (offset == 0 and position > 0))
        with tqdm(total=len(jobs) * config.rounds, initial=done, unit="round", smoothing=0.1) as progress:
            for index, job in enumerate(jobs):
                if index * config.rounds + config.rounds < done:
                    continue
                finished = max(done - index * config.rounds, 0)
                run_job(run, job, index, finished, saved, journal, progress)
        return report(config.out, dataclasses.asdict(config), run.class_names, np.asarray(run.train.targets))


def check(config: Config) -> None:
    """Refuses settings that do not go together."""
    for name in ("seeds", "rounds", "seeds_at_once"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise SystemExit(f"--{name.replace('_', '-')} {value} must be at least 1")
    if not config.strategies or len({*config.strategies}) < len(config.strategies):
        raise SystemExit(f"--strategies {' '.join(config.strategies)}: name at least one, and each of them once")
    if config.schedule != "constant" and config.num_steps is None:
        raise SystemExit(f"--schedule {config.schedule} spans a fit of known length: give --num-steps, or constant")
    if config.schedule != "constant" and config.warm_start:
        raise SystemExit(
            f"--warm-start goes on where --schedule {config.schedule} has ended, at hardly any rate: take constant"
        )


def prepare(config: Config) -> Run:
    """Data on the device, posterior and loops."""
    check(config)
    train, test, class_names = load(config)
    posterior = make_posterior(config, train.inputs.shape[1:], len(class_names))
    loops = {
        name: baal.active_loop(
            posterior, acquisition(name, config.coldness), query_size=config.query_size,
            num_samples=config.num_samples, batch_size=config.predict_batch_size, max_sample=config.max_sample,
        )
        for name in config.strategies
    }  # fmt: skip
    programs = {name: program(loop) for name, loop in loops.items()}
    return Run(config, train, test, class_names, posterior, loops, programs)


def load(config: Config) -> tuple[baal.Dataset, baal.Dataset, tuple[str, ...]]:
    """Training pool, test set and names of the classes; the arrays lie on the device."""
    if config.dataset == "digits":
        train, test = baal.data.digits(image=True)
        class_names = tuple(map(str, range(10)))
    else:
        train, test = baal.data.cifar10(config.data_dir)
        class_names = tuple(baal.data.CIFAR10_CLASSES)
    order = np.random.default_rng(config.seed)
    parts = []
    for dataset, size, name in ((train, config.subset, "subset"), (test, config.num_test, "num_test")):
        total = len(dataset.targets)
        if size is not None and not 0 < size <= total:
            raise SystemExit(f"--{name.replace('_', '-')} {size} must lie between 1 and the {total} images there are")
        ids = np.sort(order.permutation(total)[: size or total])
        parts.append(baal.Dataset(jnp.asarray(dataset.inputs[ids]), jnp.asarray(dataset.targets[ids])))
    return parts[0], parts[1], class_names


def make_posterior(config: Config, shape: tuple[int, ...], num_classes: int) -> baal.Posterior:
    """MC-dropout over the network that was asked for."""
    rates: Any = config.learning_rate
    if config.schedule == "cosine":
        rates = optax.cosine_decay_schedule(config.learning_rate, config.num_steps or 1)
    elif config.schedule == "onecycle":
        rates = optax.cosine_onecycle_schedule(config.num_steps or 1, config.learning_rate, 0.2, 25.0, 20.0)
    if config.optimizer == "adamw":
        optimizer = optax.adamw(rates, weight_decay=config.weight_decay)
    else:
        descent = optax.sgd(rates, config.momentum, nesterov=config.weight_decay > 0)
        optimizer = optax.chain(optax.add_decayed_weights(config.weight_decay), descent)
    parts = {
        "flip": augmentation.flip(),
        "shift": augmentation.shift(max(shape[0] // 8, 1)),
        "cutout": augmentation.cutout(max(shape[0] // 4, 1)),
    }

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return losses.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)

    trainer = baal.trainer(
        optimizer, loss, num_steps=config.num_steps, num_epochs=config.num_epochs, batch_size=config.batch_size,
        augment=augmentation.compose(*(parts[name] for name in config.augment)) if config.augment else None,
        average_from=config.average_from, warm_start=config.warm_start,
    )  # fmt: skip
    return posteriors.mc_dropout(make_model(config, shape, num_classes), trainer)


def make_model(config: Config, shape: tuple[int, ...], num_classes: int) -> baal.Model:
    """The network by its name."""
    dtype = jnp.bfloat16 if config.bfloat16 else None
    common: dict[str, Any] = {"num_classes": num_classes, "rate": config.rate, "dtype": dtype}
    if config.model == "wide_resnet":
        return baal.from_linen(WideResNet(**common))
    common["batch_norm"] = config.batch_norm
    small: dict[str, Any] = {"channels": (32, 64), "patch": 2}
    if config.model == "small_nnx":
        return baal.from_nnx(lambda rngs: SmallCNNnnx(shape, **small, **common, rngs=rngs))
    if config.model == "small":
        return baal.from_linen(SmallCNN(**small, **common))
    if min(shape[:2]) < 32:
        raise SystemExit(f"--model {config.model} needs images of at least 32 × 32, not {shape[:2]}: take small")
    return baal.from_linen(VGG16(hidden=(4096, 4096) if config.model == "vgg16" else (512,), **common))


def program(loop: baal.ActiveLoop) -> Callable:
    """One round of several seeds, evaluation included."""

    def one_round(
        state: baal.LoopState, train: baal.Dataset, test: baal.Dataset
    ) -> tuple[baal.LoopState, baal.StepInfo]:
        targets = train.inputs[:NUM_TARGETS]  # read by top_k_epig alone; for others the compiler drops them
        return baal.run(loop, None, train, test, num_rounds=1, state=state, target_inputs=targets)

    return jax.jit(jax.vmap(one_round, in_axes=(0, None, None)), donate_argnums=0)


def first_states(run: Run, job: Job) -> baal.LoopState:
    """Seeds by number: the same ones share keys and first labels across strategies."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(run.config.seed), i))(jnp.asarray(job.seeds))
    init = run.loops[job.strategy].init
    return jax.vmap(lambda key: init(key, run.train, run.config.num_initial))(keys)


def seeds_that_fit(run: Run) -> int:
    """One on a CPU, where seeds in one program gain nothing; else the most whose program fits into memory."""
    limits = jax.devices()[0].memory_stats() or {}
    if jax.default_backend() == "cpu":
        return 1
    size, limit = run.config.seeds, limits.get("bytes_limit")
    while size > 1 and limit is not None and max(memory_of(run, name, size) for name in run.programs) > 0.9 * limit:
        size = -(-size // 2)
    return size


def memory_of(run: Run, strategy: str, size: int) -> int:
    """Bytes that the program of one round takes, as compiled; 0 where the backend does not tell."""
    states = jax.eval_shape(lambda: first_states(run, Job(strategy, list(range(size)))))
    memory = run.programs[strategy].lower(states, run.train, run.test).compile().memory_analysis()
    return 0 if memory is None else memory.temp_size_in_bytes + memory.argument_size_in_bytes


def seeds_of_before(out: Path) -> int | None:
    """What a run that goes on has begun with, whatever else needs memory by now."""
    path = out / "checkpoints" / "config.json"
    return json.loads(path.read_text())["config"].get("seeds_at_once") if path.exists() else None


def identity(config: Config, run: Run, seeds_at_once: int) -> dict:
    """What must be equal for a run to go on: all but where things lie."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", "data_dir")}
    sums = {
        f"{name}_crc32": zlib.crc32(np.asarray(part.targets).tobytes(), zlib.crc32(np.asarray(part.inputs).tobytes()))
        for name, part in (("train", run.train), ("test", run.test))
    }
    return {**fields, "seeds_at_once": seeds_at_once, **sums}


def run_job(
    run: Run, job: Job, index: int, finished: int, saved: checkpoint.Checkpointer, journal: Path, progress: tqdm
) -> None:
    """The rounds of a job that are still to come, each written and checkpointed, and its closing line."""
    config = run.config
    shapes = jax.eval_shape(lambda: first_states(run, job))
    state = saved.restore(shapes) if finished else first_states(run, job)
    for number in range(finished, config.rounds):
        progress.set_description(f"{job.strategy}, seed {', '.join(map(str, job.seeds))}")
        start = time.perf_counter()
        state, info = jax.block_until_ready(run.programs[job.strategy](state, run.train, run.test))
        info = jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0], info)
        record = {
            "kind": "round", "strategy": job.strategy, "seeds": job.seeds, "round": number,
            "num_labelled": int(info.num_labelled[0]), "picked": info.indices, "mean_score": info.mean_score,
            "num_nan": info.num_nan, "metrics": info.metrics, "seconds": round(time.perf_counter() - start, 3),
        }  # fmt: skip
        checkpoint.append_line(journal, record)
        saved.save(index * config.rounds + number + 1, state)
        progress.set_postfix(labels=record["num_labelled"], accuracy=f"{info.metrics['accuracy'].mean():.3f}")
        progress.update()
    checkpoint.append_line(journal, close(run, job, state))


def close(run: Run, job: Job, state: baal.LoopState) -> dict:
    """What a finished job leaves besides its rounds: its calibration, and the gallery of its first seed."""
    key = jax.random.key(run.config.seed)
    batch_size, num_samples = run.config.predict_batch_size, run.config.num_samples
    found = []
    for i in range(len(job.seeds)):
        fitted = jax.tree.map(lambda leaf, i=i: leaf[i], state.posterior)
        log_probs = baal.evaluate(
            key, run.posterior, fitted, run.test, metrics=LOG_PROBS, num_samples=num_samples, batch_size=batch_size
        )["log_probs"]
        found.append(metrics.reliability(log_probs, run.test.targets))
    score_fn = heuristic(job.strategy)
    if score_fn is not None and job.seeds[0] == 0:
        first = jax.tree.map(lambda leaf: leaf[0], state)
        scores = baal.score(
            key, run.posterior, first.posterior, run.train.inputs, score_fn, num_samples=num_samples,
            batch_size=batch_size,
        )  # fmt: skip
        available = np.asarray(baal.pool.available(first.pool))
        path = run.config.out / f"gallery_{job.strategy}.png"
        gallery(path, run.train, np.asarray(scores), available, run.class_names)
    bins = {name: np.stack([getattr(one, name) for one in found]) for name in metrics.Reliability._fields}
    return {"kind": "close", "strategy": job.strategy, "seeds": job.seeds, "reliability": bins}


NUM_TARGETS = 100  # images whose predictions top_k_epig wants to learn about
LOG_PROBS = metrics.classification()._replace(compute=lambda summary, targets: {"log_probs": summary})


if __name__ == "__main__":
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", default="modern")
    first.add_argument("--model")
    chosen, _ = first.parse_known_args()
    default = preset(chosen.preset, chosen.model or ("vgg16" if chosen.preset == "original" else "vgg16_small_head"))
    main(tyro.cli(Config, description=__doc__, default=default))
