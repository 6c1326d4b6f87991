"""``baal-jax study FOLDER``: strategies × seeds, resumed by cell; ``report RESULTS``: a study as a page."""

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import jax

from baal_jax import data, features, metrics, stopping, study
from baal_jax._cli import _assemble
from baal_jax._cli._options import Report, Study
from baal_jax.study import report, statistics


def run(wanted: Study) -> None:
    """Runs what is missing of the study that a command line asks for, and prints its statistics."""
    study.use_all_cores()
    study.use_compilation_cache()
    names = ("target", "task", "image_size", "num_test", "seed", "data_dir")
    encode = _assemble.named("encode", wanted.encode) if ".py:" in wanted.encode else wanted.encode
    chosen = {name: getattr(wanted, name) for name in names} | {"encode": encode, "image": wanted.model == "cnn"}
    try:
        problem = data.open(wanted.data, **chosen)
    except ValueError as error:
        if wanted.target is None or not re.fullmatch(r"[\d.]+", wanted.target):
            raise
        raise ValueError(f"{error} (a value to reach is --reach)") from error
    print(problem.said, file=sys.stderr)
    if problem.test is None:
        cure = "label it first (baal-jax propose), or put each class into a folder of its own"
        raise ValueError(f"data={wanted.data!r} has no labels, or nothing is held out: {cure}")
    is_regression, input_shape = problem.num_classes is None, problem.train.inputs.shape[1:]
    model, by_name = _assemble.learners(
        wanted, wanted.posteriors, problem.num_classes, input_shape, problem.train.inputs.dtype
    )
    _assemble.require_draws(by_name, wanted.strategies)
    several = by_name if len(by_name) > 1 else next(iter(by_name.values()))
    asked = {name: getattr(wanted, name) for name in ("query_size", "num_samples", "max_sample")}
    asked["features"] = _assemble.of_any(getattr(features, wanted.features)(model), wanted.posteriors)
    base = metrics.regression() if is_regression else metrics.classification(diagnostics=True)
    asked["metrics"], metric, higher = _assemble.metric_set(base, wanted.metric)
    loops = study.strategies(several, _assemble.picks(wanted.strategies), **asked)
    config = {name: value for name, value in dataclasses.asdict(wanted).items() if name not in _ELSEWHERE}
    told = {"metric": metric, "target": wanted.reach, "class_names": problem.class_names, "higher_is_better": higher}
    told |= {"config": config, "images": problem.images, "command": _command(wanted)}
    about = study.About(f"Active learning on {Path(wanted.data).stem}", **told)
    options: dict[str, Any] = {"num_seeds": wanted.seeds, "num_rounds": wanted.rounds}
    options |= {name: getattr(wanted, name) for name in ("num_initial", "chunk", "same_device")}
    if (i_n := wanted.part) is not None and not re.fullmatch(r"\d+/\d+", i_n):
        raise ValueError(f"part={i_n} must be i/n, such as 0/8")
    options["part"] = None if i_n is None else tuple(map(int, i_n.split("/")))
    options["stop"] = None if wanted.budget is None else stopping.labelling_budget(wanted.budget)
    options |= {"key": jax.random.key(wanted.seed), "about": about, "progress": True}
    try:
        results = study.run(wanted.folder, loops, problem.train, problem.test, **options)
    except KeyboardInterrupt:
        kept = "nothing was computed yet"
        if (wanted.folder / "study.json").exists():
            done, cells = study.results.progress(wanted.folder)
            kept = f"{done} of {cells} cells are kept in {wanted.folder}: the same command goes on from there"
        raise KeyboardInterrupt(kept) from None
    done, cells = study.results.progress(wanted.folder)
    if is_complete := all(name in results.runs and len(results.runs[name].seeds) >= wanted.seeds for name in loops):
        asked_for = results._replace(runs={name: results.runs[name] for name in loops}) if done < cells else results
        summary = statistics.summary(asked_for)
        print(statistics.text(summary) if sys.stdout.isatty() else statistics.markdown(summary))
    if done < cells:
        said = "other parts compute them, or a call with all seeds and strategies that the folder was asked for"
        print(f"{cells - done} of {cells} cells are still missing: {said}")
    if is_complete:
        rows = [wanted.folder / "results.csv"] if done == cells else []
        print("", *rows, report.write(wanted.folder), sep="\n")


def _command(wanted: Study) -> str:
    """The command line, without what is as it is by default or says who computes what."""
    words = ["baal-jax", "study", str(wanted.folder)]
    for field in dataclasses.fields(wanted):
        value = getattr(wanted, field.name)
        if field.name not in ("folder", "part", "same_device", "chunk") and value != field.default:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


# What study.json has under other names, what may grow, and what changes no number.
_ELSEWHERE = {"folder", "data_dir", "strategies", "posteriors", "seeds", "rounds"}
_ELSEWHERE |= {"num_initial", "metric", "reach", "chunk", "part", "same_device", "seed"}


def write(wanted: Report) -> None:
    """Writes the page and the figures that a command line asks for, and prints their paths."""
    read = study.results.read(wanted.results)
    print(report.write(wanted.results, wanted.out or wanted.results / "report.html"))
    if wanted.figures is not None:
        print(*report.figures(read, wanted.figures, formats=wanted.formats), sep="\n")
