"""Strategies × seeds: what is missing in a folder is run, and all of it is returned."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, files, sources
from baal_jax.loop import ActiveLoop, active_loop, ready
from baal_jax.stopping import Criterion
from baal_jax.study import _folder
from baal_jax.study._program import Data, Rounds, default_chunk, programs
from baal_jax.study.results import Results, read_pictures
from baal_jax.training import tasks
from baal_jax.typing import Acquisition, Dataset, Key, Posterior, PyTree


class About(NamedTuple):
    """What is written down about a study, and changes no run of it.

    Attributes:
        name: a title for the report.
        baseline: the strategy that others are compared with; by default what it was, ``"random"``, or the first.
        metric: the one that matters most; by default accuracy, F1 or RMSE, by what is learnt.
        target: value of that metric for "labels to reach it".
        higher_is_better: whether more of that metric is better, or name → bool; needed where the metric is your own.
        class_names: of the ``C`` classes.
        config: whatever else describes the study; kept in ``study.json``, and refused if it changes.
        images: ``[N, H, W, 1 or 3]``, what the report shows of an example; the inputs if they have this shape.
    """

    name: str | None = None
    baseline: str | None = None
    metric: str | None = None
    target: float | None = None
    higher_is_better: bool | Mapping[str, bool] | None = None
    class_names: Sequence[str] | None = None
    config: Mapping[str, Any] | None = None
    images: Any = None


def strategies(
    posteriors: Posterior | Mapping[str, Posterior],
    acquisitions: Acquisition | Mapping[str, Acquisition],
    **options: Any,
) -> dict[str, ActiveLoop]:
    """Every acquisition with every posterior, as loops with names.

    Args:
        posteriors: one, or several by name.
        acquisitions: by name; or one where there are several posteriors.
        options: of :func:`~baal_jax.active_loop`, the same for all: ``query_size``, ``num_samples``, …

    Returns:
        Name → loop. The name is the acquisition's, the posterior's, or ``"posterior, acquisition"`` where both vary.

    Raises:
        ValueError: there is one of each and so no name, or an option is wrong.

    Example:
        >>> import baal_jax as baal
        >>> from baal_jax import heuristics, selection, study
        >>> coin = baal.Posterior(fit=None, sample=None, apply=None)
        >>> picks = {"random": selection.random(), "bald": selection.top_k(heuristics.bald)}
        >>> list(study.strategies({"dropout": coin, "ensemble": coin}, picks, query_size=2))
        ['dropout, random', 'dropout, bald', 'ensemble, random', 'ensemble, bald']
    """
    if isinstance(posteriors, Posterior) and isinstance(acquisitions, Acquisition):
        raise ValueError("acquisitions is a single one, without a name: pass a dictionary of name and acquisition")
    first = {"": posteriors} if isinstance(posteriors, Posterior) else posteriors
    second = {"": acquisitions} if isinstance(acquisitions, Acquisition) else acquisitions
    pairs = itertools.product(first.items(), second.items())
    return {", ".join(filter(None, (a, b))): active_loop(one, other, **options) for (a, one), (b, other) in pairs}


def run(
    folder: str | Path,
    loops: Mapping[str, ActiveLoop],
    train: Dataset,
    test: Dataset,
    *,
    key: Key,
    num_seeds: int,
    num_rounds: int,
    num_initial: int,
    stop: Criterion | None = None,
    stop_inputs: PyTree = None,
    target_inputs: PyTree = None,
    about: About | None = None,
    chunk: int | None = None,
    progress: bool = False,
) -> Results:
    """Runs what is missing of a study, and returns all of it.

    Seed ``s`` of every strategy starts from ``fold_in(key, s)``: the same first labels, and the same random numbers for
    fits and draws, so that strategies are compared in pairs. ``chunk`` seeds of a strategy are a file, so whatever ends
    the process, the same call goes on from there. More seeds, which compile nothing new, and strategies are added to a
    folder; what else differs is refused: data (of a source its first example and all targets), rounds or a program.

    Args:
        folder: where the study is or will be. What is in it: :mod:`baal_jax.study.results`.
        loops: name → loop, for example of :func:`strategies`. Their ``metrics`` should be
            ``metrics.classification(diagnostics=True)`` for a report with calibration and classes.
        train: the pool with all its targets. With a source as inputs (``__len__`` and ``__getitem__``) the labelled
            examples and one batch are on the device, seeds and rounds take turns, and no fit may be semi-supervised.
        test: where every round's fit is evaluated.
        key: a typed key, of everything.
        num_seeds: runs of every strategy, seeds 0, 1, ….
        num_rounds: ``R``, fits of every run.
        num_initial: examples that are labelled at random before the first round.
        stop: a criterion of :mod:`baal_jax.stopping`; every seed stops for itself.
        stop_inputs: inputs whose predictions the criterion reads.
        target_inputs: inputs whose predictions matter, for acquisitions that read them.
        about: title, baseline, metric and what else is written down, an :class:`About`.
        chunk: seeds in a call, rounded up to a multiple of the devices. By default one for every device on a CPU (see
            :func:`use_all_cores`), and all on an accelerator: fewer where memory is short.
        progress: shows a bar with the time that is left.

    Returns:
        :class:`~baal_jax.study.results.Results`, strategies and seeds of earlier calls included.

    Raises:
        ValueError: the folder holds another study or a damaged file, a strategy's program has changed since its first
            seeds were computed, another process is at work, a number is not positive, or text cannot be written.
        OSError: the disk is full, or the folder was moved: it is whole where it is now.
        ImportError: ``progress`` needs tqdm, which is not installed.

    Example:
        >>> import tempfile, optax, flax.linen as nn
        >>> import baal_jax as baal
        >>> from baal_jax import heuristics, posteriors, selection, study
        >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(2)])
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> picks = {"random": selection.random(), "bald": selection.top_k(heuristics.bald)}
        >>> loops = study.strategies(posteriors.mc_dropout(baal.from_linen(net), trainer), picks, query_size=1)
        >>> train = baal.Dataset(jnp.eye(6), jnp.array([0, 1, 0, 1, 0, 1]))
        >>> with tempfile.TemporaryDirectory() as home:
        ...     options = {"key": jax.random.key(0), "num_seeds": 2, "num_rounds": 2, "num_initial": 2}
        ...     results = study.run(home, loops, train, train, **options)
        >>> {name: runs.num_labelled.tolist() for name, runs in results.runs.items()}
        {'random': [[2, 3], [2, 3]], 'bald': [[2, 3], [2, 3]]}
    """
    about = About() if about is None else about
    seeds = range(checks.positive_int("num_seeds", num_seeds))
    num_initial = checks.positive_int("num_initial", num_initial, least=0)
    rounds = Rounds(checks.positive_int("num_rounds", num_rounds), num_initial, stop)
    checks.optional_int("chunk", chunk)
    checks.typed_key("key", key)
    for option, dataset in (("train", train), ("test", test)):
        tasks.admit(option, dataset)
        if dataset.targets is None:
            raise ValueError(f"{option} has no targets, and a study looks them up instead of asking: give all of them")
    if sources.is_source(test.inputs) and not isinstance(test.inputs, np.ndarray):
        raise ValueError("test.inputs is a source on the host, but every round is evaluated on it: load it whole")
    if on_host := sources.is_source(train.inputs):
        train = train._replace(targets=np.asarray(train.targets))
    if not loops:
        raise ValueError("loops is empty: give at least one strategy")
    checks.text("loops", [*loops])
    checks.text("about", files.plain([about.name, about.class_names]))
    checks.text("about.config", files.plain(about.config), lines=True)
    if about.baseline is not None and about.baseline not in loops:
        raise ValueError(f"baseline={about.baseline!r} is not among the strategies: {', '.join(loops)}")
    test, target_inputs, stop_inputs = jax.tree.map(jnp.asarray, (test, target_inputs, stop_inputs))
    data = Data(key, train if on_host else jax.tree.map(jnp.asarray, train), test, target_inputs, stop_inputs)
    hashed = train._replace(inputs=sources.load(train.inputs, [0])) if on_host else train
    loops = {name: ready(loop, key, data.train, test, rounds.num_initial)[0] for name, loop in loops.items()}
    metric, better = _metric_of_all(loops, key, data, rounds, about.metric), about.higher_is_better
    description = {
        **{name: value for name, value in about._asdict().items() if name != "images"},
        "strategies": list(loops),
        "metric": metric,
        "higher_is_better": better if isinstance(better, Mapping | None) else {metric: better},
        "class_names": None if about.class_names is None else list(about.class_names),
        "seeds": list(seeds),
        "num_rounds": rounds.num_rounds,
        "num_initial": rounds.num_initial,
        "key": jax.random.key_data(key).tolist(),
        **_folder.describe_pool(train.targets),
        "data": _folder.digest((hashed, test)),
    }
    with _folder.opened(folder, description) as place, _bar(place, loops, seeds, num_rounds, progress) as advance:
        program_of = programs([*loops.values()], rounds, data)
        for strategy, loop in loops.items():
            advance(strategy, 0)
            now_program = program_of(loop, place.chunk(strategy) or chunk or default_chunk(num_seeds))
            place.require_same_program(strategy, now_program.fingerprint)
            failed = total = 0
            missing, size = place.missing(strategy, seeds), now_program.chunk
            for now in (missing[first : first + size] for first in range(0, len(missing), size)):
                # Padded to one shape, whatever is left to do.
                initial, infos = now_program.call(np.pad(now, (0, size - len(now)), mode="edge"))
                place.add(strategy, _folder.cell(now, initial, infos, train.targets, now_program.fingerprint, size))
                failed += int(np.sum(np.asarray(infos.num_failed_fits)[: len(now)]))
                total += len(now) * num_rounds
                advance(strategy, len(now) * num_rounds)
            if failed:
                what = f"{failed} networks of {total} fits are not finite or ended where they began"
                cure = "look at the learning rate, the loss and the validation set"
                warnings.warn(f"strategy {strategy!r}: {what}: {cure}", stacklevel=2)
        return _finish(place, train, about.images)


def _metric_of_all(loops: Mapping[str, ActiveLoop], key: Key, data: Data, rounds: Rounds, wanted: str | None) -> str:
    """The metric that matters most, which every strategy must report."""
    for name, loop in loops.items():
        evaluate = lambda *given, loop=loop: loop.evaluate(*given, loop.metrics)  # noqa: E731
        values = jax.eval_shape(evaluate, loop.init(key, data.train, rounds.num_initial), data.test)
        checks.text(f"metrics of {name!r}", [*values])
        numbers = [key for key, value in values.items() if value.ndim == 0]
        if wanted is None:
            if not numbers:
                raise ValueError(f"{name!r} reports no metric that is one number: add one to its metrics")
            wanted = ([metric for metric in ("accuracy", "f1_micro", "rmse") if metric in numbers] or numbers)[0]
        if wanted not in numbers:
            raise ValueError(f"metric={wanted!r} is not what {name!r} reports: choose one of {', '.join(numbers)}")
    assert wanted is not None
    return wanted


@contextmanager
def _bar(place: _folder.Folder, loops: Iterable[str], seeds: Any, num_rounds: int, progress: bool) -> Iterator[Any]:
    """A function that is told of strategies and of rounds that are done, and shows them with the time that is left."""
    if not progress:
        yield lambda strategy, done: None
        return
    tqdm = checks.optional_import("tqdm", "experiments")
    missing = num_rounds * sum(len(place.missing(name, seeds)) for name in loops)
    with tqdm.tqdm(total=missing, unit="round", dynamic_ncols=True) as shown:

        def advance(strategy: str, done: int) -> None:
            shown.set_description(strategy if done else f"{strategy} (compiling)")
            shown.update(done)

        yield advance


def _finish(place: _folder.Folder, train: Dataset, images: Any) -> Results:
    """Table and pictures; all that is in the folder."""
    if images is None:
        shape = np.shape(train.inputs) if hasattr(train.inputs, "shape") else ()
        images = train.inputs if len(shape) == 4 and shape[-1] in (1, 3) else None
    pictures, path = None, place.path / "pictures.npz"
    if images is not None:
        pictures = _folder.save_pictures(place, images, train.targets)
    elif path.exists():  # of a call with images; a damaged one is no reason to stop
        with suppress(ValueError):
            pictures = read_pictures(path, place.description)
    return place.write_table()._replace(pictures=pictures)
