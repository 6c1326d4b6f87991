"""BALD with MC-dropout against random labelling on CIFAR-10 with VGG16, resumable: active learning on images.

The experiment of the original library's README, as one compiled program a round: VGG16 with dropout in its head, 1,000
random labels to begin with, then the images that the draws disagree on most. Every strategy shares the trainer, the
keys and the first labels. Writes a line of JSON a round, learning curves, a calibration diagram, the classes that were
queried, and a gallery of the most and the least informative images. Every round is checkpointed: killed at any moment
and started again with the same command, a run ends with the same results, bit for bit.

    python experiments/vgg_mcdropout_cifar10.py --preset original        # the original's settings
    python experiments/vgg_mcdropout_cifar10.py                       # a trainer that trains well, for accelerators
    python experiments/vgg_mcdropout_cifar10.py --model small --subset 10000               # for a CPU

By the last command at 2,500 labels: random .584 accuracy and 1.190 NLL, BALD .579 and 1.168 (three seeds). Two cores of
an AMD EPYC with AVX-512, 527 s beside other work (docs/cifar10.md). The others have not been run to their end.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from models import VGG16, SmallCNN, SmallCNNnnx, WideResNet
from tqdm import tqdm

import baal_jax as baal
from baal_jax import checkpoint, losses, metrics, posteriors
from baal_jax.study import plots
from baal_jax.training import augmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Images, harness.Rounds):
    """BALD against random labelling on CIFAR-10.

    Attributes:
        preset: where the defaults below come from: the original experiment, or a trainer that trains well. They also
            depend on the model: small ones get a trainer for CPUs.
        model: VGG16 with the original's 4096-4096 head or with a small one, WRN-16-4, or a small network for CPUs (also
            as nnx).
        strategies: "random", a heuristic by name, or a stochastic selection and a heuristic, such as "power_bald".
        max_sample: score only this many available images, drawn at random each round.
        num_epochs: passes over the labelled images in a fit, or
        num_steps: steps of a fit.
        batch_size: labelled images in a step.
        optimizer: SGD has Nesterov momentum where it has weight decay.
        learning_rate: its peak, where there is a schedule.
        momentum: of SGD.
        weight_decay: L2 for SGD, decoupled for AdamW.
        schedule: of the learning rate over one fit; needs num_steps unless constant.
        label_smoothing: of the training loss.
        average_from: stochastic weight averaging from this share of the steps on.
        augment: what training images go through.
        batch_norm: batch normalisation in VGG16 and in the small network.
        rate: of dropout.
        bfloat16: compute in bfloat16; parameters and outputs stay float32.
        warm_start: continue from the weights of the round before instead of starting afresh.
        coldness: of stochastic selections (inverse temperature), automatic by default.
        predict_batch_size: images in work at a time when predicting; changes no number.
        seeds_at_once: seeds in one program; by default one on a CPU, and all of them on an accelerator.
    """

    preset: Literal["original", "modern"] = "modern"
    model: Literal["vgg16", "vgg16_small_head", "wide_resnet", "small", "small_nnx"] = "vgg16_small_head"
    strategies: tuple[str, ...] = ("random", "bald")
    seeds: int = 3
    num_initial: int = 1000
    query_size: int = 900
    rounds: int = 11
    max_sample: int | None = None
    num_epochs: int | None = None
    num_steps: int | None = 4000
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "onecycle"] = "onecycle"
    label_smoothing: float = 0.0
    average_from: float | None = 0.75
    augment: tuple[Literal["flip", "shift", "cutout"], ...] = ("flip", "shift", "cutout")
    batch_norm: bool = True
    rate: float = 0.5
    bfloat16: bool = False
    warm_start: bool = False
    coldness: float | None = None
    predict_batch_size: int = 256
    seeds_at_once: int | None = None
    out: Path = Path("results/cifar10")


NUM_TARGETS = 100  # images whose predictions epig wants to learn about; for others the compiler drops them
ORIGINAL: dict[str, Any] = {
    "preset": "original",
    "query_size": 100,
    "rounds": 20,
    "num_epochs": 20,
    "num_steps": None,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "average_from": None,
    "augment": ("flip",),
    "batch_norm": False,
}
CPU: dict[str, Any] = {  # a trainer that a CPU can afford
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


def preset(name: str, model: Any) -> Config:
    """The defaults for a preset and a model."""
    if name == "original":
        return Config(**ORIGINAL, model=model)
    return Config(**(CPU if model in ("small", "small_nnx") else {}), model=model)


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


def main(config: Config) -> None:
    """Runs, or goes on with, all jobs, then reports."""
    run = prepare(config)
    size = config.seeds_at_once or (1 if jax.default_backend() == "cpu" else config.seeds)
    chunks = [list(range(i, min(i + size, config.seeds))) for i in range(0, config.seeds, size)]
    jobs = [Job(name, chunk) for name in config.strategies for chunk in chunks]
    jax.eval_shape(lambda: first_states(run, jobs[0]))  # refuses numbers that do not fit, before anything is written
    config.out.mkdir(parents=True, exist_ok=True)
    with checkpoint.checkpointer(config.out / "checkpoints", identity(config, run, size)) as saved:
        done, journal = saved.latest or 0, config.out / "rounds.jsonl"
        checkpoint.keep_lines(journal, done)  # a round may be written and not checkpointed
        with tqdm(total=len(jobs) * config.rounds, initial=done, unit="round", smoothing=0.1) as progress:
            for index, job in enumerate(jobs):
                first = index * config.rounds
                if done < first + config.rounds:
                    run_job(run, job, first, max(done - first, 0), saved, journal, progress)
        report(config, run.class_names, np.asarray(run.train.targets))


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


def prepare(config: Config) -> Run:
    """Data on the device, posterior and loops."""
    check(config)
    train, test, class_names = load(config)
    posterior = make_posterior(config, train.inputs.shape[1:], len(class_names))
    acquisitions = {name: harness.acquisition(name, config.coldness) for name in config.strategies}
    options: dict[str, Any] = {"batch_size": config.predict_batch_size, "max_sample": config.max_sample}
    loops = {name: harness.active_loop(config, posterior, how, **options) for name, how in acquisitions.items()}
    return Run(config, train, test, class_names, posterior, loops, harness.rounds(loops, NUM_TARGETS))


def load(config: Config) -> tuple[baal.Dataset, baal.Dataset, tuple[str, ...]]:
    """Training pool, test set and names of the classes; the arrays lie on the device."""
    names = map(str, range(10)) if config.dataset == "digits" else baal.data.CIFAR10_CLASSES
    return *harness.images(config), tuple(names)


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
    loss = partial(losses.cross_entropy, label_smoothing=config.label_smoothing)
    augment = augmentation.compose(*(parts[name] for name in config.augment)) if config.augment else None
    names = ("num_steps", "num_epochs", "batch_size", "average_from", "warm_start")
    trainer = baal.trainer(optimizer, loss, augment=augment, **{name: getattr(config, name) for name in names})
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


def first_states(run: Run, job: Job) -> baal.LoopState:
    """Seeds by number: the same ones share keys and first labels across strategies."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(run.config.seed), i))(jnp.asarray(job.seeds))
    init = run.loops[job.strategy].init
    return jax.vmap(lambda key: init(key, run.train, run.config.num_initial))(keys)


def identity(config: Config, run: Run, seeds_at_once: int) -> dict:
    """What must be equal for a run to go on: all but where things lie."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", "data_dir")}
    sums = {
        f"{name}_crc32": zlib.crc32(np.asarray(part.targets).tobytes(), zlib.crc32(np.asarray(part.inputs).tobytes()))
        for name, part in (("train", run.train), ("test", run.test))
    }
    return {**fields, "seeds_at_once": seeds_at_once, **sums}


def run_job(
    run: Run, job: Job, first: int, finished: int, saved: checkpoint.Checkpointer, journal: Path, progress: tqdm
) -> None:
    """The rounds of a job that are still to come, each written and checkpointed; after the last one its calibration."""
    config, label = run.config, f"{job.strategy}, seed {', '.join(map(str, job.seeds))}"
    shapes = jax.eval_shape(lambda: first_states(run, job))
    state = saved.restore(shapes) if finished else first_states(run, job)
    progress.set_description(label)
    for number in range(finished, config.rounds):
        start = time.perf_counter()
        state, info = jax.block_until_ready(run.programs[job.strategy](state, run.train, run.test))
        info = jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0], info)
        record = {
            **job._asdict(),
            "round": number,
            "num_labelled": int(info.num_labelled[0]),
            "picked": info.indices,
            "mean_score": info.mean_score,
            "num_nan": info.num_nan,
            "metrics": info.metrics,
            "seconds": round(time.perf_counter() - start, 3),
        }
        if number == config.rounds - 1:
            record["reliability"] = reliability(run, state)
            if job.seeds[0] == 0:
                gallery(run, job.strategy, jax.tree.map(lambda leaf: leaf[0], state))
        checkpoint.append_line(journal, record)
        saved.save(first + number + 1, state)
        harness.show(progress, label, labels=record["num_labelled"], accuracy=info.metrics["accuracy"])


def reliability(run: Run, states: baal.LoopState) -> dict[str, np.ndarray]:
    """Calibration of the last fit of every seed: name → ``[seeds, bins]``."""
    log_probs = metrics.classification()._replace(compute=lambda summary, targets: {"log_probs": summary})
    options = {"num_samples": run.config.num_samples, "batch_size": run.config.predict_batch_size}
    bins = []
    for i in range(len(states.step)):
        fitted = jax.tree.map(lambda leaf, i=i: leaf[i], states.posterior)
        key = jax.random.key(run.config.seed)
        values = baal.evaluate(key, run.posterior, fitted, run.test, metrics=log_probs, **options)
        bins.append(metrics.reliability(values["log_probs"], run.test.targets))
    return {name: np.stack([getattr(one, name) for one in bins]) for name in metrics.Reliability._fields}


def gallery(run: Run, strategy: str, state: baal.LoopState, num: int = 12) -> None:
    """The unlabelled images with the highest and the lowest scores of a strategy's heuristic, if it has one."""
    score_fn, ids = harness.heuristic(strategy), np.flatnonzero(baal.pool.available(state.pool))
    if score_fn is None or not len(ids):
        return
    options = {"num_samples": run.config.num_samples, "batch_size": run.config.predict_batch_size}
    key, inputs = jax.random.key(run.config.seed), run.train.inputs
    scores = np.asarray(baal.score(key, run.posterior, state.posterior, inputs, score_fn, **options))
    order = ids[np.argsort(scores[ids], kind="stable")]

    def row(chosen: np.ndarray) -> tuple[np.ndarray, list[str]]:
        names = [run.class_names[int(target)] for target in run.train.targets[chosen]]
        captions = [f"{name}\n{score:.2f}" for name, score in zip(names, scores[chosen], strict=True)]
        return np.asarray(inputs[chosen]), captions

    rows = {"most informative": row(order[::-1][:num]), "least informative": row(order[:num])}
    harness.save_figure(plots.plot_gallery(rows), run.config.out / f"gallery_{strategy}.png")


def report(config: Config, class_names: Sequence[str], targets: np.ndarray) -> None:
    """The table, the figures and `results.json`, from `rounds.jsonl` alone; ``targets [N]`` are those of the pool."""
    lines = checkpoint.read_lines(config.out / "rounds.jsonl")
    curves, bins, queried = {}, {}, {}
    for name in config.strategies:
        rounds = [line for line in lines if line["strategy"] == name]
        curves[name] = learning_curves(rounds)
        last = [line["reliability"] for line in rounds if line["round"] == config.rounds - 1]
        bins[name] = [stacked([part[field] for part in last]) for field in metrics.Reliability._fields]
        queried[name] = queried_classes(rounds, targets, len(class_names), config.rounds)
    print(harness.learning_curve_table(curves, target=0.5))
    harness.draw(config.out / "curves.png", "", *((curves, metric, "") for metric in ("accuracy", "nll", "ece")))
    harness.save_figure(plots.plot_reliability(bins).figure, config.out / "calibration.png")
    harness.save_figure(plots.plot_class_histogram(queried, class_names).figure, config.out / "classes.png")
    by_class = dict(zip(class_names, np.stack(list(queried.values()), axis=-1).tolist(), strict=True))
    harness.write(config, sum(line["seconds"] for line in lines), strategies=curves, labels_by_class=by_class)
    print(f"wrote results.json, rounds.jsonl and figures to {config.out}")


def learning_curves(rounds: list[dict]) -> harness.Curves:
    """All seeds of one strategy."""
    numbers = sorted({line["round"] for line in rounds})
    by_round = [[line for line in rounds if line["round"] == number] for number in numbers]
    values = {
        name: np.stack([stacked([line["metrics"][name] for line in part]) for part in by_round], axis=1)
        for name in rounds[0]["metrics"]
    }
    return harness.Curves(np.array([part[0]["num_labelled"] for part in by_round]), values)


def queried_classes(rounds: list[dict], targets: np.ndarray, num_classes: int, last: int) -> np.ndarray:
    """``[C]``: how often each class was picked, mean over seeds; the picks of the last round are never trained on."""
    picked = [np.ravel(line["picked"]) for line in rounds if line["round"] < last - 1]
    seeds = sum(len(line["seeds"]) for line in rounds if line["round"] == 0)
    ids = np.concatenate([np.zeros(0, int), *picked])
    return np.bincount(targets[ids[ids >= 0]], minlength=num_classes) / seeds


def stacked(parts: list[list]) -> np.ndarray:
    """Along the seeds; what is not finite is null in the journal."""
    return np.concatenate([np.array(part, dtype=np.float64) for part in parts])


if __name__ == "__main__":
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", default="modern")
    first.add_argument("--model")
    chosen, _ = first.parse_known_args()
    default = preset(chosen.preset, chosen.model or ("vgg16" if chosen.preset == "original" else "vgg16_small_head"))
    main(tyro.cli(Config, description=__doc__, default=default))
