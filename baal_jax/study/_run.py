"""Strategies × seeds: what is missing in a folder is run here or as an array job, and all of it is returned."""

import hashlib
import inspect
import itertools
import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, files, sources
from baal_jax.loop import ActiveLoop, active_loop, ready
from baal_jax.stopping import Criterion
from baal_jax.study import _folder, _program, results
from baal_jax.study._program import Data, Rounds
from baal_jax.study.results import Results
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
        command: what computes it, for the report.
    """

    name: str | None = None
    baseline: str | None = None
    metric: str | None = None
    target: float | None = None
    higher_is_better: bool | Mapping[str, bool] | None = None
    class_names: Sequence[str] | None = None
    config: Mapping[str, Any] | None = None
    images: Any = None
    command: str | None = None


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
    part: tuple[int, int] | None = None,
    same_device: bool = False,
    progress: bool = False,
) -> Results:
    """Runs what is missing of a study, and returns all of it.

    Seed ``s`` of every strategy starts from ``fold_in(key, s)``: the same first labels, and the same random numbers for
    fits and draws, so that strategies are compared in pairs. ``chunk`` seeds of a strategy are a file, so whatever ends
    the process, the same call goes on from there. More seeds, which compile nothing new, and strategies are added to a
    folder; what else differs is refused: data (of a source its first example and all targets), rounds or a program.

    The same call in several processes, on any machines that share the folder, shares the work: each takes cells that no
    other has claimed, and waits for the last. Table and pictures are those of one process, byte for byte.

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
        chunk: seeds in a file, as the study was begun; a call is of so many, rounded up to a multiple of the devices.
            By default one for every device on a CPU (see :func:`use_all_cores`), and all on an accelerator: fewer where
            memory is short or the work is shared.
        part: ``(i, n)``: every ``n``-th file from the ``i``-th on, whoever has claimed it, without waiting for other
            parts; ``(0, 1)`` is everything, shared by claims. By default the task of a Slurm array, if this is one, of
            which every process of a multi-process job of JAX computes its share.
        same_device: refuses to compute where another kind of device has.
        progress: shows a bar of what all processes compute, with the time that is left.

    Returns:
        :class:`~baal_jax.study.results.Results`, strategies and seeds of earlier calls included; of a part, while other
        parts are missing, what it covers.

    Raises:
        ValueError: the folder holds another study or a damaged file, a strategy's program has changed since its first
            seeds were computed, a number is not positive, or text cannot be written.
        OSError: the disk is full, or the folder was moved: it is whole where it is now.
        ImportError: ``progress`` needs tqdm, which is not installed.

    Example:
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
    return _compute(admitted(SimpleNamespace(**locals())))


def admitted(asked: Any) -> Any:
    """The arguments of :func:`run`, looked at as far as that is possible without computing, and what they make."""
    about, key = About() if asked.about is None else asked.about, asked.key
    seeds = range(checks.positive_int("num_seeds", asked.num_seeds))
    num_initial = checks.positive_int("num_initial", asked.num_initial, least=0)
    rounds = Rounds(checks.positive_int("num_rounds", asked.num_rounds), num_initial, asked.stop)
    checks.optional_int("chunk", asked.chunk)
    checks.typed_key("key", key)
    (i, n), (task, count) = _parts(asked.part)
    for option, dataset in (("train", train := asked.train), ("test", test := asked.test)):
        if not all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(dataset)):
            raise ValueError(f"{option} is spread over processes, but each runs seeds of its own: give all of it")
        tasks.admit(option, dataset)
        if dataset.targets is None:
            raise ValueError(f"{option} has no targets, and a study looks them up instead of asking: give all of them")
    if sources.is_source(test.inputs) and not isinstance(test.inputs, np.ndarray):
        raise ValueError("test.inputs is a source on the host, but every round is evaluated on it: load it whole")
    if on_host := sources.is_source(train.inputs):
        train = train._replace(targets=np.asarray(train.targets))
    if not asked.loops:
        raise ValueError("loops is empty: give at least one strategy")
    checks.text("loops", [*asked.loops])
    checks.text("about", files.plain([about.name, about.class_names, about.command]))
    checks.text("about.config", files.plain(about.config), lines=True)
    if about.baseline is not None and about.baseline not in asked.loops:
        raise ValueError(f"baseline={about.baseline!r} is not among the strategies: {', '.join(asked.loops)}")
    test, *others = jax.tree.map(jnp.asarray, (test, asked.target_inputs, asked.stop_inputs))
    data = Data(key, train if on_host else jax.tree.map(jnp.asarray, train), test, *others)
    hashed = train._replace(inputs=sources.load(train.inputs, [0])) if on_host else train
    loops = {name: ready(loop, key, data.train, test, num_initial)[0] for name, loop in asked.loops.items()}
    metric, better = _metric_of_all(loops, key, data, rounds, about.metric), about.higher_is_better
    description = {
        **{name: value for name, value in about._asdict().items() if name != "images"},
        "strategies": list(loops),
        "metric": metric,
        "higher_is_better": better if isinstance(better, Mapping | None) else {metric: better},
        "class_names": None if about.class_names is None else list(about.class_names),
        "seeds": list(seeds),
        "num_rounds": rounds.num_rounds,
        "num_initial": num_initial,
        "key": jax.random.key_data(key).tolist(),
        **_folder.describe_pool(train.targets),
        "data": _folder.digest((hashed, test)),
        "chunk": asked.chunk or _program.default_chunk(data, len(seeds), len(loops), count),
    }
    place = _folder.Folder(asked.folder, description)
    cells = results.cells_of(loops, len(seeds), place.description["chunk"])
    made_by = {name: _program.fingerprint(loops[name], rounds, data) for name in {name: 0 for name, _ in cells[i::n]}}
    vars(asked).update(about=about, loops=loops, data=data, rounds=rounds, place=place, made_by=made_by)
    vars(asked).update(cells=cells, mine=cells[i::n], shared=cells[task::count], by_force=n > 1)
    return asked


def _parts(part: tuple[int, int] | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """``(i, n)`` of this process, and of all processes of its task, which wait for each other."""
    if part is not None:
        i, n = part
        checks.positive_int("part[0]", i, least=0)
        if i >= checks.positive_int("part[1]", n):
            raise ValueError(f"part={part!r} does not exist: count from (0, {n}) to ({n - 1}, {n})")
        return (i, n), (i, n)
    number, first, step, count = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1), ("COUNT", 1))
    )
    task = (number - first) // step
    if not 0 <= task < count:
        raise ValueError(f"SLURM_ARRAY_TASK_ID={number} is none of {count} in a row: pass part=(i, n)")
    return (task + count * jax.process_index(), count * jax.process_count()), (task, count)


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


def _compute(study: Any) -> Results:
    """What is missing of all that :func:`admitted` made, and what there is then."""
    place, num_rounds, mine = study.place, study.rounds.num_rounds, results.missing(study.place.path, study.mine)
    place.begin(study.made_by, _folder.device() if mine else None, study.same_device)
    program_of = _program.programs([*study.loops.values()], study.rounds, study.data)
    failed, total = Counter(), Counter()
    left, train = results.missing(place.path, study.shared), study.data.train
    with _bar(place, left, num_rounds, study.progress) as advance:
        while left:
            later = []
            for strategy, seeds in left:
                cell = results.path_of(place.path, strategy, seeds)
                claim = place.path / "claims" / cell.stem
                if cell.exists():
                    continue
                if (strategy, seeds) not in mine or not _folder.take(claim, study.by_force):
                    later.append((strategy, seeds))
                    continue
                try:
                    if cell.exists():
                        continue
                    first = "first seeds" if total else "compiling, first seeds"
                    advance(strategy if total[strategy] else f"{strategy} ({first})")
                    program, now = program_of(study.loops[strategy], place.description["chunk"]), np.asarray(seeds)
                    # Padded to one shape, whatever is left to do.
                    initial, infos = program.call(np.pad(now, (0, (program.size or len(now)) - len(now)), mode="edge"))
                    made_by = study.made_by[strategy]
                    place.add(strategy, _folder.cell(now, initial, infos, train.targets, made_by))
                    failed[strategy] += int(np.sum(np.asarray(infos.num_failed_fits)[: len(now)]))
                    total[strategy] += len(now) * num_rounds
                finally:
                    _folder.give_back(claim)
            if left := later:
                advance()
                time.sleep(1)
    for strategy in +failed:
        what = f"{failed[strategy]} networks of {total[strategy]} fits are not finite or ended where they began"
        cure = "look at the learning rate, the loss and the validation set"
        warnings.warn(f"strategy {strategy!r}: {what}: {cure}", stacklevel=3)
    if len(study.shared) < len(study.cells) and results.missing(place.path, study.cells):
        return results.merged(place.path, place.description, study.shared)
    images = study.about.images
    if images is None and len(shape := getattr(train.inputs, "shape", ())) == 4 and shape[-1] in (1, 3):
        images = train.inputs
    return place.finish(images, train.targets)


@contextmanager
def _bar(place: _folder.Folder, wanted: Any, num_rounds: int, progress: bool) -> Iterator[Any]:
    """A function that shows what is at work, and what all processes have done, with the time that is left."""
    if not progress:
        yield lambda now=None: None
        return
    tqdm = checks.optional_import("tqdm", "experiments")
    rounds = {results.path_of(place.path, *cell).name: num_rounds * len(cell[1]) for cell in wanted}
    on_terminal, over = sys.stderr.isatty(), threading.Event()
    with tqdm.tqdm(total=sum(rounds.values()), unit="round", dynamic_ncols=True, disable=not on_terminal) as shown:
        looked, done, began = -np.inf, 0, time.monotonic()

        def advance(now: str | None = None, *, at_once: bool = False) -> None:
            nonlocal looked, done
            if now:
                shown.set_description(now)
            if at_once or time.monotonic() - looked > 2:
                there, looked = {*os.listdir(place.path / "cells")}, time.monotonic()
                done = sum(count for name, count in rounds.items() if name in there)
                shown.update(done - shown.n)
            if not on_terminal and now:  # a log file gets a line
                passed = time.monotonic() - began
                print(f"{passed:.0f} s, {done} of {sum(rounds.values())} rounds: {now}", file=sys.stderr, flush=True)

        def tick() -> None:
            while not over.wait(1.0):
                shown.refresh()  # so that the clock goes on while a program is compiled

        if on_terminal:
            threading.Thread(target=tick, daemon=True).start()
        try:
            yield advance
        finally:
            over.set()
        advance("done" if not on_terminal else None, at_once=True)


class _Part(NamedTuple):
    """What a task calls; when it is preempted or out of time, submitit puts the same one into the queue again."""

    asked: Path

    def __call__(self, i: int, n: int) -> None:
        _program.use_all_cores(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        )  # of this job
        _program.use_compilation_cache()
        run(**checks.optional_import("cloudpickle", "cluster").loads(self.asked.read_bytes()), part=(i, n))

    def checkpoint(self, i: int, n: int) -> Any:
        return checks.optional_import("submitit", "cluster").helpers.DelayedSubmission(self, i, n)


def submit(
    folder: str | Path, loops: Any, train: Any, test: Any, *, executor: Any, num_parts: int, **options: Any
) -> list[Any]:
    """Submits a study as an array job, by `submitit <https://github.com/facebookincubator/submitit>`_.

    All that :func:`run` refuses is refused here, before anything is queued. What it is given travels as one file in the
    executor's folder. A task that is preempted or out of time computes the same part again, which is what is missing.

    Args:
        folder: where the study is or will be, for all machines.
        loops: as of :func:`run`, and so are the next ones; what cloudpickle can take.
        train: the pool with all its targets.
        test: where every round's fit is evaluated.
        executor: of submitit, with its parameters, such as ``AutoExecutor("jobs")``.
        num_parts: tasks of the array.
        options: of :func:`run`, all but ``part``.

    Returns:
        Jobs of submitit in order of their parts. Their results are None: :func:`results.read` has those of the study.

    Raises:
        ValueError: as of :func:`run`, or ``num_parts`` is not positive.
        ImportError: submitit is not installed.

    Example:
        >>> import submitit                                                      # doctest: +SKIP
        >>> executor = submitit.AutoExecutor("jobs")                             # doctest: +SKIP
        >>> executor.update_parameters(timeout_min=60, gpus_per_node=1)          # doctest: +SKIP
        >>> jobs = study.submit("runs/large", loops, train, test, executor=executor, num_parts=40, **options)
        ... # doctest: +SKIP
    """
    submitit, cloudpickle = (checks.optional_import(name, "cluster") for name in ("submitit", "cloudpickle"))
    checks.positive_int("num_parts", num_parts)
    given: dict[str, Any] = {"folder": Path(folder).absolute(), "loops": loops, "train": train, "test": test, **options}
    bound = inspect.signature(run).bind(**given, part=(0, 1))
    bound.apply_defaults()
    admitted(SimpleNamespace(**bound.arguments))
    content = cloudpickle.dumps(given)
    home = submitit.core.utils.JobPaths.get_first_id_independent_folder(executor.folder)
    path = files.write_bytes(home / f"study-{hashlib.sha256(content).hexdigest()[:16]}.pkl", content)
    return executor.map_array(_Part(path), range(num_parts), [num_parts] * num_parts)
