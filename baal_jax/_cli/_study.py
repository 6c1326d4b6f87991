"""``python -m baal_jax study FOLDER``: strategies × seeds, resumed by cell, with the statistics at the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax

from baal_jax import features, metrics, posteriors, selection, stopping, study
from baal_jax._cli import _assemble
from baal_jax.study import report, statistics


@dataclasses.dataclass(frozen=True)
class Study:
    """Compares strategies of active learning, every one with many seeds.

    Every strategy is one compiled program, and every core of the machine runs a seed of its own. What has been computed
    is on disk at once: the same command goes on where it was killed, and asked for more seeds or more strategies it
    computes what is new. Prints the statistics; report.html in the folder has the curves.

        python -m baal_jax study runs/digits
        python -m baal_jax study runs/digits --strategies random bald margin badge --seeds 40 --target 0.9
        python -m baal_jax study runs/mine --data mine.npz --model package.module:network --query-size 5 10 20 40
    """

    folder: Path
    """Where the study is or will be."""

    data: str = "digits"
    """digits (comes with scikit-learn), cifar10, an .npz file with train_inputs, train_targets, test_inputs and
    test_targets, or a UCI table as text for regression."""

    data_dir: Path | None = None
    """Where cifar10 is; by default the folder that TFDS_DATA_DIR names."""

    num_test: int = 1000
    """Examples of a UCI table that are held out."""

    strategies: tuple[str, ...] = ("random", "bald")
    """What to compare: random, batch_bald, badge, …; a heuristic such as margin, the top of whose scores is labelled;
    or a ranking and a heuristic, such as power_bald. Others are compared with random, or else with the first."""

    posteriors: tuple[str, ...] = ("mc_dropout",)
    """How predictions vary: mc_dropout, deep_ensemble, swag, laplace, bayes_by_backprop, …; all strategies run with
    each."""

    model: str = "mlp"
    """mlp, cnn, or package.module:factory, where factory(num_outputs) returns a linen module, or a function from rngs
    to an nnx module."""

    rate: float = 0.5
    """Dropout of mlp and cnn."""

    features: Literal["last_hidden", "gradient"] = "last_hidden"
    """What badge and other selections of sets read."""

    seeds: int = 20
    """Runs of every strategy."""

    rounds: int = 15
    """Fits of every run."""

    num_initial: int = 20
    """Labels drawn at random before the first round."""

    query_size: tuple[int, ...] = (10,)
    """Labels added in a round; several numbers are a schedule, the last of which holds for all later rounds."""

    num_samples: int = 20
    """Draws of the posterior, for scores and for evaluation."""

    max_sample: int | None = None
    """Score only this many examples of the pool, others in every round."""

    num_steps: int = 300
    """Adam steps of every fit; the network starts afresh each time."""

    batch_size: int = 32
    """Labelled examples in a step."""

    learning_rate: float = 1e-3
    """Of Adam."""

    budget: int | None = None
    """A run stops at this many labels."""

    metric: str | None = None
    """What matters most: accuracy, nll, brier, ece; rmse, mae, crps; by default accuracy or rmse."""

    target: float | None = None
    """Its value for "labels to reach it"; by default one that most runs of the baseline reach."""

    chunk: int | None = None
    """Seeds in a call of the compiled program; by default one a core, or on an accelerator as many as memory holds."""

    seed: int = 0
    """Of everything."""


def run(wanted: Study) -> None:
    """Runs what is missing of the study that a command line asks for, and prints its statistics.

    Raises:
        ValueError: a name is unknown, or the folder holds another study.
    """
    study.use_all_cores()
    if not wanted.posteriors or not {*wanted.posteriors} <= {*posteriors.REGISTRY}:
        raise ValueError(
            f"posteriors={' '.join(wanted.posteriors)} must be names of {', '.join(posteriors.REGISTRY)}, at least one"
        )
    problem = _assemble.problem(wanted)
    is_regression, input_shape = problem.num_classes is None, problem.train.inputs.shape[1:]
    model, by_name = _assemble.learners(wanted, wanted.posteriors, problem.num_classes, input_shape)
    loops = study.strategies(
        by_name if len(by_name) > 1 else by_name[wanted.posteriors[0]],
        {name: selection.by_name(name) for name in wanted.strategies},
        query_size=wanted.query_size,
        num_samples=wanted.num_samples,
        max_sample=wanted.max_sample,
        features=getattr(features, wanted.features)(model),
        metrics=metrics.regression() if is_regression else metrics.classification(diagnostics=True),
    )
    results = study.run(
        wanted.folder,
        loops,
        problem.train,
        problem.test,
        key=jax.random.key(wanted.seed),
        num_seeds=wanted.seeds,
        num_rounds=wanted.rounds,
        num_initial=wanted.num_initial,
        stop=None if wanted.budget is None else stopping.labelling_budget(wanted.budget),
        about=study.About(
            name=f"Active learning on {Path(wanted.data).stem}",
            metric=wanted.metric,
            target=wanted.target,
            class_names=problem.class_names,
            config={name: value for name, value in dataclasses.asdict(wanted).items() if name not in _ELSEWHERE},
            images=problem.images,
        ),
        chunk=wanted.chunk,
        progress=True,
    )
    print(statistics.markdown(statistics.summary(results)))
    print(f"\n{wanted.folder / 'results.csv'}\n{report.write(results, wanted.folder / 'report.html')}")


# What study.json has under other names, what may grow, and what changes no number.
_ELSEWHERE = {
    *("folder", "data_dir", "strategies", "posteriors", "seeds", "rounds"),
    *("num_initial", "metric", "target", "chunk", "seed"),
}
