"""Experiments an hour: a study of many seeds beside Baal's loop, one seed after the other, on the same machine.

An experiment is an active-learning run on digits: network 64-256-256-10 with dropout .5, 20 rounds of 300 Adam steps of
32, 20 draws over the 1,437 images of the pool, 10 labels a round, and 20 draws over the 360 test images. Prints
experiments an hour on both sides, evaluation included, with and without the time to compile, the share of the
arithmetic limit, and checks that the learning curves agree. On an accelerator all seeds are one call. Needs what
baal_digits.py needs, except with `--theirs 0`.

    python experiments/benchmarks/study.py
    python experiments/benchmarks/study.py --seeds 1024 --theirs 0          # a GPU

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import baal_digits
import numpy as np
import tyro
from baal_digits import BATCH, DRAWS, INITIAL, MULTIPLICATIONS, QUERY, STEPS

# Whole AVX-512 registers, where XLA would use half of them; and one product of matrices at a time in YNNPACK, which
# jaxlib 0.10 hands the whole network with its summary otherwise.
OPTIONS = {
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A study beside Baal."""

    seeds: int = 32
    """Runs of baal_jax, one call of study.run."""

    rounds: int = 20
    """Of every run."""

    theirs: int = 8
    """Runs of Baal with workers=0, from the first labels of as many of ours; 0 leaves Baal out."""

    shipped: bool = True
    """Three rounds of Baal with workers=4, its default, as well."""

    whole_batches: bool = False
    """Baal reads its examples as baal_jax does: for equal curves, see baal_digits.py."""

    shared_masks: bool = False
    """One dropout mask a draw for all examples; Baal gives every example masks of its own."""

    options: bool = True
    """Compile with OPTIONS on a CPU."""

    side: Literal["both", "ours"] = "both"
    """Used by the script itself to give each side a process of its own."""


def main(config: Config) -> None:
    """Both sides, each in its own process."""
    if config.side == "ours":
        print("RESULT " + baal_digits.json.dumps(run_ours(config)))
        return
    arguments = [f"--seeds={config.seeds}", f"--rounds={config.rounds}", "--side=ours"]
    arguments.append("--options" if config.options else "--no-options")
    arguments.append("--shared-masks" if config.shared_masks else "--no-shared-masks")
    output = baal_digits.subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=baal_digits.subprocess.PIPE, text=True
    ).stdout
    ours = baal_digits.json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])
    rate = 3600 * config.seeds / ours["seconds"]
    limit = 3600 * ours["gemm"] / (config.rounds * operations())
    print(
        f"baal_jax on {ours['device']}: {config.seeds} experiments in {ours['seconds']:.1f} s, {rate:.0f} an hour "
        f"({3600 * config.seeds / (ours['seconds'] + ours['compile']):.0f} with {ours['compile']:.1f} s of compilation)"
    )
    print(
        f"matrix multiplication {ours['gemm'] / 1e9:.0f} GFLOP/s allows {limit:.0f} an hour: {rate / limit:.0%} of it"
    )
    accuracy = np.array(ours["accuracy"])
    if config.theirs:
        tuned = baal_digits.Config(
            rounds=config.rounds,
            seeds=config.theirs,
            workers=(0,),
            whole_batches=config.whole_batches,
            first=baal_digits.json.dumps(ours["first"]),
        )
        theirs = baal_digits.in_process(tuned, "baal")
        per_hour = 3600 / (theirs["seconds_evaluated"] * config.rounds)
        print(
            f"Baal, workers=0: {theirs['seconds_evaluated']:.3f} s a round, {theirs['seconds']:.3f} s of them without "
            f"evaluation, {per_hour:.1f} an hour: ratio {rate / per_hour:.1f}"
        )
        baal_digits.compare(accuracy[: config.theirs], np.array(theirs["accuracy"]))
        if config.shipped:
            shipped = dataclasses.replace(tuned, rounds=3, seeds=1, workers=(4,), whole_batches=False)
            shipped = baal_digits.in_process(shipped, "baal")
            per_hour = 3600 / (shipped["seconds_evaluated"] * config.rounds)
            print(f"Baal, workers=4: {shipped['seconds_evaluated']:.1f} s a round: ratio {rate / per_hour:.0f}")


def operations() -> float:
    """Multiplications and additions of a round: training, and full passes over the pool and the test images."""
    return (6 * STEPS * BATCH + 2 * DRAWS * (1437 + 360)) * MULTIPLICATIONS


def run_ours(config: Config) -> dict:
    """One call of study.run; the time to compile is that of a study of one call less its run."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from baal_jax import study

    study.use_all_cores()
    import jax
    import jax.numpy as jnp
    import optax
    from models import MLP

    import baal_jax as baal
    from baal_jax import heuristics, losses, posteriors, selection
    from baal_jax.study import _program

    train, test = jax.tree.map(jnp.asarray, baal.data.digits())
    trainer = baal.trainer(optax.adam(1e-3), losses.cross_entropy, num_steps=STEPS, batch_size=BATCH)
    loops = study.grid(
        posteriors.mc_dropout(baal.from_linen(MLP()), trainer, shared_masks=config.shared_masks),
        {"bald": selection.top_k(heuristics.bald)},
        query_size=QUERY,
        num_samples=DRAWS,
    )
    compiling = []
    trace = _program.trace

    def timed(*arguments, **options):
        begin = time.perf_counter()
        traced = trace(*arguments, **options)
        before = time.perf_counter() - begin

        def compile_it(*choices):
            begin = time.perf_counter()
            program = traced.compile(*choices)
            compiling.append(before + time.perf_counter() - begin)
            return program

        return traced._replace(compile=compile_it)

    sys.modules["baal_jax.study._study"].trace = timed
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        found = study.run(
            folder,
            loops,
            train,
            test,
            key=jax.random.key(0),
            num_seeds=config.seeds,
            num_rounds=config.rounds,
            num_initial=INITIAL,
            compiler_options=OPTIONS if config.options and jax.default_backend() == "cpu" else None,
        )
        seconds = time.perf_counter() - begin
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("each",))
    each = jax.sharding.PartitionSpec("each")
    multiply = jax.jit(jax.shard_map(lambda x: x @ x, mesh=mesh, in_specs=each, out_specs=each))
    squares, times = jax.device_put(jnp.ones((len(devices), 2048, 2048)), jax.NamedSharding(mesh, each)), []
    for _ in range(12):
        begin = time.perf_counter()
        jax.block_until_ready(multiply(squares))
        times.append(time.perf_counter() - begin)
    return {
        "device": f"{devices[0].device_kind} × {len(devices)}",
        "seconds": seconds - sum(compiling),
        "compile": sum(compiling),
        "gemm": len(devices) * 2 * 2048**3 / float(np.median(times[2:])),
        "accuracy": found.runs["bald"].metrics["accuracy"].astype(float).tolist(),
        "first": found.runs["bald"].initial.tolist(),
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
