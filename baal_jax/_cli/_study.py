"""``python -m baal_jax study FOLDER``: strategies × seeds, resumed by cell, with the statistics at the end."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

from baal_jax import features, losses, metrics, posteriors, selection, stopping, study
from baal_jax._cli import _data, _networks
from baal_jax._util import checks
from baal_jax.study import report, statistics
from baal_jax.study.results import Results
from baal_jax.training import trainer
from baal_jax.typing import Posterior


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


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: what follows ``python -m baal_jax study``.

    Returns:
        0, or 1 where something cannot be done; the reason is on standard error.

    Raises:
        ImportError: tyro, tqdm, or what the data need is not installed.
    """
    tyro = checks.optional_import("tyro", "experiments")
    positional = (tyro.conf.PositionalRequiredArgs,)
    wanted = tyro.cli(Study, prog="python -m baal_jax study", args=argv, config=positional)
    try:
        study.use_all_cores()
        found = run(wanted)
        print(statistics.markdown(statistics.summary(found)))
        print(f"\n{wanted.folder / 'results.csv'}\n{report.write(found, wanted.folder / 'report.html')}")
    except ValueError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    return 0


def run(wanted: Study, progress: bool = True) -> Results:
    """The study that a command line asks for.

    Args:
        wanted: the command line.
        progress: shows a bar.

    Returns:
        :class:`~baal_jax.study.results.Results`.

    Raises:
        ValueError: a name is unknown, or the folder holds another study.
    """
    import jax

    problem = _data.load(wanted.data, wanted.data_dir, wanted.model == "cnn", wanted.num_test, wanted.seed)
    model = _networks.make(wanted.model, problem.num_outputs, problem.train.inputs.shape[1:], wanted.rate)
    loops = study.grid(
        _posteriors(wanted, model, problem),
        {name: selection.by_name(name) for name in wanted.strategies},
        query_size=wanted.query_size,
        num_samples=wanted.num_samples,
        max_sample=wanted.max_sample,
        features=getattr(features, wanted.features)(model),
        metrics=metrics.regression() if problem.is_regression else metrics.classification(diagnostics=True),
    )
    settings = dataclasses.asdict(wanted)
    config = {name: value for name, value in settings.items() if name not in _ELSEWHERE}
    return study.run(
        wanted.folder,
        loops,
        problem.train,
        problem.test,
        key=jax.random.key(wanted.seed),
        num_seeds=wanted.seeds,
        num_rounds=wanted.rounds,
        num_initial=wanted.num_initial,
        stop=None if wanted.budget is None else stopping.labelling_budget(wanted.budget),
        metric=wanted.metric,
        target=wanted.target,
        name=f"Active learning on {Path(wanted.data).stem}",
        class_names=problem.class_names,
        images=problem.images,
        config=config,
        chunk=wanted.chunk,
        progress=progress,
    )


# What study.json has under other names, what may grow, and what changes no number.
_ELSEWHERE = (
    "folder",
    "data_dir",
    "strategies",
    "posteriors",
    "seeds",
    "rounds",
    "num_initial",
    "metric",
    "target",
    "chunk",
    "seed",
)


def _posteriors(wanted: Study, model: Any, problem: _data.Problem) -> Posterior | dict[str, Posterior]:
    optax = checks.optional_import("optax", "experiments")
    loss = losses.squared_error if problem.is_regression else losses.cross_entropy
    fit = trainer(optax.adam(wanted.learning_rate), loss, num_steps=wanted.num_steps, batch_size=wanted.batch_size)
    unknown = [name for name in wanted.posteriors if name not in posteriors.REGISTRY]
    if unknown or not wanted.posteriors:
        raise ValueError(
            f"posteriors={' '.join(wanted.posteriors)} must be names of {', '.join(posteriors.REGISTRY)}, at least one"
        )
    found = {name: posteriors.REGISTRY[name](model, fit) for name in wanted.posteriors}
    return found[wanted.posteriors[0]] if len(found) == 1 else found
