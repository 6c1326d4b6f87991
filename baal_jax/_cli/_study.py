"""``python -m baal_jax study FOLDER``: strategies × seeds, resumed by cell; ``report RESULTS``: a study as a page."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import jax

from baal_jax import features, metrics, posteriors, selection, stopping, study
from baal_jax._cli import _assemble
from baal_jax.study import report, statistics


@dataclasses.dataclass(frozen=True)
class Study:
    """Compares strategies of active learning, every one with many seeds.

    Every core runs a seed of its own. The same command goes on where it was killed, and asked for more seeds or more
    strategies it computes what is new; given in several shells or on several machines it shares the work. Prints the
    statistics; report.html in the folder has the curves. Compiled programs are kept in baal_jax of your folder of
    caches (~/.cache), so that another study like it starts at once.

        python -m baal_jax study runs/digits
        python -m baal_jax study runs/digits --strategies random bald margin badge --seeds 40 --target 0.9
        python -m baal_jax study runs/mine --data mine.npz --model package.module:network --query-size 5 10 20 40

    Attributes:
        folder: Where the study is or will be.
        data: digits (comes with scikit-learn), cifar10, an .npz file with train_inputs, train_targets, test_inputs and
            test_targets, or a UCI table as text for regression.
        data_dir: Where cifar10 is; by default the folder that TFDS_DATA_DIR names.
        num_test: Examples of a UCI table that are held out.
        strategies: What to compare: random, batch_bald, badge, …; a heuristic such as margin, the top of whose scores
            is labelled; or a ranking and a heuristic, such as power_bald. Random, or else the first, is the baseline.
        posteriors: How predictions vary: mc_dropout, deep_ensemble, swag, laplace, …; all strategies run with each.
        model: mlp, cnn, or package.module:factory (num_outputs -> linen module, or function rngs -> nnx).
        rate: Dropout of mlp and cnn.
        features: What badge and other selections of sets read.
        seeds: Runs of every strategy.
        rounds: Fits of every run.
        num_initial: Labels drawn at random before the first round.
        query_size: Labels added in a round; several numbers are a schedule, whose last one holds for all later rounds.
        num_samples: Draws of the posterior, for scores and for evaluation.
        max_sample: Score only this many examples of the pool, others in every round.
        num_steps: Adam steps of every fit; the network starts afresh each time.
        batch_size: Labelled examples in a step.
        learning_rate: Of Adam.
        budget: A run stops at this many labels.
        metric: What matters most: accuracy, nll, brier, ece; rmse, mae, crps; by default accuracy or rmse.
        target: Its value for "labels to reach it"; by default one that most runs of the baseline reach.
        chunk: Seeds in a file, of one call; by default one a core, or all of them on an accelerator.
        part: i/n, every n-th file from the i-th on (0/n, …); by default the task of a Slurm array, or everything.
        same_device: Refuse to compute where another kind of device has.
        seed: Of everything.
    """

    folder: Path
    data: str = "digits"
    data_dir: Path | None = None
    num_test: int = 1000
    strategies: tuple[str, ...] = ("random", "bald")
    posteriors: tuple[str, ...] = ("mc_dropout",)
    model: str = "mlp"
    rate: float = 0.5
    features: Literal["last_hidden", "gradient"] = "last_hidden"
    seeds: int = 20
    rounds: int = 15
    num_initial: int = 20
    query_size: tuple[int, ...] = (10,)
    num_samples: int = 20
    max_sample: int | None = None
    num_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-3
    budget: int | None = None
    metric: str | None = None
    target: float | None = None
    chunk: int | None = None
    part: str | None = None
    same_device: bool = False
    seed: int = 0


def run(wanted: Study) -> None:
    """Runs what is missing of the study that a command line asks for, and prints its statistics."""
    study.use_all_cores()
    study.use_compilation_cache()
    if not wanted.posteriors or not {*wanted.posteriors} <= {*posteriors.REGISTRY}:
        known = ", ".join(posteriors.REGISTRY)
        raise ValueError(f"posteriors={' '.join(wanted.posteriors)} must be names of {known}, at least one")
    problem = _assemble.problem(wanted)
    is_regression, input_shape = problem.num_classes is None, problem.train.inputs.shape[1:]
    model, by_name = _assemble.learners(wanted, wanted.posteriors, problem.num_classes, input_shape)
    several = by_name if len(by_name) > 1 else by_name[wanted.posteriors[0]]
    asked = {name: getattr(wanted, name) for name in ("query_size", "num_samples", "max_sample")}
    asked["features"] = getattr(features, wanted.features)(model)
    asked["metrics"] = metrics.regression() if is_regression else metrics.classification(diagnostics=True)
    loops = study.strategies(several, {name: selection.by_name(name) for name in wanted.strategies}, **asked)
    config = {name: value for name, value in dataclasses.asdict(wanted).items() if name not in _ELSEWHERE}
    told = {"metric": wanted.metric, "target": wanted.target, "class_names": problem.class_names}
    about = study.About(f"Active learning on {Path(wanted.data).stem}", config=config, images=problem.images, **told)
    options: dict[str, Any] = {"num_seeds": wanted.seeds, "num_rounds": wanted.rounds}
    options |= {name: getattr(wanted, name) for name in ("num_initial", "chunk", "same_device")}
    if (i_n := wanted.part) is not None and not re.fullmatch(r"\d+/\d+", i_n):
        raise ValueError(f"part={i_n} must be i/n, such as 0/8")
    options["part"] = None if i_n is None else tuple(map(int, i_n.split("/")))
    options["stop"] = None if wanted.budget is None else stopping.labelling_budget(wanted.budget)
    key, data = jax.random.key(wanted.seed), (problem.train, problem.test)
    results = study.run(wanted.folder, loops, *data, key=key, about=about, progress=True, **options)
    done, cells = study.results.progress(wanted.folder)
    if done < cells:
        return print(f"{cells - done} of {cells} cells are still missing: they are other parts'")
    print(statistics.markdown(statistics.summary(results)))
    print(f"\n{wanted.folder / 'results.csv'}\n{report.write(wanted.folder)}")


# What study.json has under other names, what may grow, and what changes no number.
_ELSEWHERE = {"folder", "data_dir", "strategies", "posteriors", "seeds", "rounds"}
_ELSEWHERE |= {"num_initial", "metric", "target", "chunk", "part", "same_device", "seed"}


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes a study as one self-contained HTML page.

    The page needs no network and no other file: open it in a browser, or mail it. It holds learning curves, statistics,
    what was queried, uncertainty, calibration and the configuration, of a study that still runs as far as it has come.

        python -m baal_jax report runs/digits
        python -m baal_jax report runs/digits --out digits.html --figures paper/figures

    Attributes:
        results: Folder of the study: the one that holds study.json.
        out: The page to write. By default report.html in the folder of the study.
        figures: Folder for the same figures as files, for papers. Needs matplotlib: pip install 'baal_jax[plot]'.
        formats: Formats of those files: png, pdf, svg and others that matplotlib writes.
    """

    results: Path
    out: Path | None = None
    figures: Path | None = None
    formats: tuple[str, ...] = ("png", "pdf")


def write(wanted: Report) -> None:
    """Writes the page and the figures that a command line asks for, and prints their paths."""
    read = study.results.read(wanted.results)
    print(report.write(read, wanted.out or wanted.results / "report.html"))
    if wanted.figures is not None:
        print(*report.figures(read, wanted.figures, formats=wanted.formats), sep="\n")
