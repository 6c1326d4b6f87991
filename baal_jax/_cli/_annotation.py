"""``baal-jax propose`` and ``ingest``: a labelling project from files alone."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from baal_jax import annotation, features, selection, study
from baal_jax._cli import _assemble
from baal_jax._cli._options import Amend, Export, Ingest, Propose
from baal_jax._util import files, images
from baal_jax.loop import ActiveLoop, active_loop

# What project.json keeps, with what counts where nothing is said.
_SETTINGS: dict[str, Any] = {"data": None, "url_prefix": "", "image_size": 32, "model": "mlp", "rate": 0.5}
_SETTINGS |= {"posterior": "mc_dropout", "strategy": "power_bald", "num_initial": 20, "cold_start": "random"}
_SETTINGS |= {"query_size": 20, "num_samples": 20, "num_steps": 500, "batch_size": 32, "learning_rate": 1e-3, "seed": 0}


_SAID_AGAIN = ("data", "image_size", "model", "rate", "posterior", "strategy", "query_size", "num_samples", "num_steps")
_SAID_AGAIN += ("batch_size", "learning_rate")  # what may change in a project that has begun
_HANDLER = logging.StreamHandler()
_SHOWN = 5  # reasons that are printed


def propose(wanted: Propose) -> None:
    """Writes the next query of the project that a command line names, and prints where its tasks are."""
    _begin()
    path = wanted.folder / "project.json"
    known = files.read_json(path, "restore it from a backup") if path.exists() else None
    if known is None and wanted.data is None:
        raise ValueError(f"folder={str(wanted.folder)!r} holds no project yet: begin one with --data")
    kind, class_names, settings = _settings(wanted, known)
    pool, loop = _loop(settings, kind, class_names)
    config = {name: value for name, value in vars(settings).items() if name != "multi_label"}
    if known is None:
        about = {"class_names": class_names, "kind": kind, "multi_label": settings.multi_label, "config": config}
        annotation.start(wanted.folder, references=pool.references, **about)
    else:
        # A command that was killed may have left less; what is there stays.
        about = {"class_names": class_names, "kind": kind, "multi_label": settings.multi_label}
        annotation.start(wanted.folder, references=known["references"], config=known["config"], **about)
        pool, new = _aligned(pool, known)
        changed = [f"{name}: {known['config'][name]} → {config[name]}" for name in config
                   if files.plain(config[name]) != known["config"][name]]  # fmt: skip
        if new or changed:
            annotation.amend(wanted.folder, references=new, config=config)
        if new:
            changed.append(f"{len(new)} new examples, with ids from {len(known['references'])} on")
        print(*changed, sep="\n", end="\n" * bool(changed), file=sys.stderr)
    first: dict[str, Any] = {}
    if settings.cold_start != "random":
        first = {"cold_start": selection.by_name(settings.cold_start), "embeddings": pool.embeddings}
    first |= {"num_initial": settings.num_initial, "key": jax.random.key(settings.seed)}
    query = annotation.propose(wanted.folder, loop, pool.inputs, give_up=wanted.give_up, review=wanted.review, **first)
    _write_pictures(wanted.folder, pool, query)
    answered = len(query.indices) - len(query.waiting)
    print(f"round {query.round}: {len(query.indices)} examples, {answered} answered")
    for index, reason in list(zip(query.indices.tolist(), query.reasons, strict=False))[:_SHOWN]:
        print(f"  {index} {pool.references[index][:60]}: {reason}")
    if len(query.reasons) > _SHOWN:
        print(f"  … and {len(query.reasons) - _SHOWN} more, in the column why of the tasks")
    print(query.tasks)


def _begin() -> None:
    """Programs are kept, and what is being done is said."""
    study.use_compilation_cache()
    logger = logging.getLogger("baal_jax")
    logger.setLevel(logging.INFO)
    _HANDLER.stream = sys.stderr  # whatever that is now
    logger.addHandler(_HANDLER)


def _loop(settings: SimpleNamespace, kind: str, class_names: list[str] | None) -> tuple[_assemble.Pool, ActiveLoop]:
    """The pool of a project, and the loop that asks about it."""
    pool = _assemble.pool(settings, kind)
    if pool.said:
        print(pool.said, file=sys.stderr)
    num_classes = None if class_names is None else len(class_names)
    model, by_name = _assemble.learners(
        settings, [settings.posterior], num_classes, pool.inputs.shape[1:], pool.inputs.dtype
    )
    _assemble.require_draws(by_name, [settings.strategy])
    acquisition = _assemble.pick(settings.strategy, multi_label=settings.multi_label)[1]
    hidden = _assemble.of_any(features.last_hidden(model), [settings.posterior])
    sizes: dict[str, Any] = {"query_size": settings.query_size, "num_samples": settings.num_samples}
    (posterior,) = by_name.values()
    _assemble.check(settings, posterior, pool.inputs, num_classes)
    if num_classes is None:
        posterior, hidden = _assemble.standardised(posterior), _assemble.of_standardised(hidden)
    return pool, active_loop(posterior, acquisition, features=hidden, **sizes)


def _aligned(pool: _assemble.Pool, known: dict[str, Any]) -> tuple[_assemble.Pool, list[str]]:
    """The pool in the order of its ids, and references that have none yet, which come last."""
    places: dict[str, list[int]] = {}
    for i, reference in enumerate(pool.references):
        places.setdefault(reference, []).append(i)
    order = []
    for index, reference in enumerate(known["references"]):  # of equal texts each is there as often as it was
        if places.get(reference):
            order.append(places[reference].pop(0))
        elif index in known.get("excluded", ()):
            order.append(0)  # which nobody reads
        else:
            cure = f"put it back, or leave it out: baal-jax amend … --exclude {index}"
            raise ValueError(f"{reference!r} of the project is not among the data any more: {cure}")
    there = {*known["references"]}
    new = [reference for reference in places if reference not in there]
    if again := len(pool.references) - len(order) - len(new):
        print(f"{again} rows left out, of which there are equal ones", file=sys.stderr)
    order = np.array(order + [places[reference][0] for reference in new])
    rows = {"inputs": pool.inputs[order], "embeddings": pool.embeddings[order]}
    return pool._replace(references=[*known["references"], *new], **rows), new


def amend(wanted: Amend) -> None:
    """Changes the project that a command line names."""
    pairs = [text.partition("=") for text in wanted.rename]
    if wrong := [old + mark + new for old, mark, new in pairs if not (old and mark and new)]:
        raise ValueError(f"rename={wrong[0]!r} must be old=new")
    rename = {old: new for old, _, new in pairs}
    print(annotation.amend(wanted.folder, classes=wanted.add_classes, rename=rename, exclude=wanted.exclude))


def export(wanted: Export) -> None:
    """Writes tables and network of the project that a command line names, and prints their paths."""
    known = files.read_json(wanted.folder / "project.json", "begin a project with baal-jax propose")
    if wanted.labels_only:
        return print(*annotation.export(wanted.folder), sep="\n")
    _begin()
    kind, class_names, settings = _settings(Propose(wanted.folder), known)
    pool, loop = _loop(settings, kind, class_names)
    pool, new = _aligned(pool, known)
    if new:
        raise ValueError(f"data={settings.data!r} has {len(new)} new examples, such as {new[0]!r}: propose first")
    written = annotation.export(wanted.folder, loop, pool.inputs, key=jax.random.key(settings.seed), folds=wanted.folds)
    if Path(settings.data).is_dir() and class_names is not None:
        told = _SEVERAL if settings.multi_label else _ONE
        script = _CLASSIFY.format(size=settings.image_size, names=class_names, told=told)
        written.append(files.write_text(wanted.folder / "classify.py", script))
    print(*written, sep="\n")
    if (path := wanted.folder / "learning_curve.csv") in written:
        labels, score, error, first = path.read_text(encoding="utf-8").splitlines()[-1].split(",")
        metric = path.read_text(encoding="utf-8").partition("\n")[0].split(",")[1]
        of_first = "" if first == "nan" else f"; {float(first):.3g} on those of the first query"
        told = f"{metric} {float(score):.3g} ± {float(error):.2g} of {labels} labels"
        print(f"{told}, each left out of one of {wanted.folds} fits{of_first}")


_CLASSIFY = """# python classify.py photo.jpg …: needs jax and Pillow.
import pathlib, sys
import jax.export, numpy as np
from PIL import Image, ImageOps
names = {names!r}
network = jax.export.deserialize(bytearray(pathlib.Path(__file__).with_name("network.stablehlo").read_bytes()))
for path in sys.argv[1:]:
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB").resize(({size}, {size}))
    probabilities = np.asarray(network.call(np.asarray(photo)[None]))[0]
    print({told})
"""
_ONE = 'path, names[probabilities.argmax()], f"{probabilities.max():.4f}"'
_SEVERAL = 'path, *(f"{name} {probability:.4f}" for name, probability in zip(names, probabilities))'


def ingest(wanted: Ingest) -> None:
    """Keeps the answers of the export that a command line names, and prints how many of them are new."""
    ingested = annotation.ingest(wanted.folder, wanted.export, several=wanted.several)
    print(", ".join(f"{len(ids)} {name}" for name, ids in ingested._asdict().items()))


def _settings(wanted: Propose, known: dict[str, Any] | None) -> tuple[Any, list[str] | None, SimpleNamespace]:
    """What was said when the project began, or is said now; both must agree."""
    options = {name: value for name, value in vars(wanted).items() if name not in ("folder", "give_up", "review")}
    said = {name: files.plain(value) for name, value in options.items() if value is not None and value is not False}
    if known is None:
        class_names = said.pop("classes", None)
        kind = said.pop("kind", "text" if _assemble.is_table(wanted.data) else "image")
        if class_names is None:
            said.setdefault("strategy", "variance")
        return kind, class_names, SimpleNamespace(**_SETTINGS | {"multi_label": False} | said)
    if known["config"].keys() != _SETTINGS.keys():
        raise ValueError(f"folder={str(wanted.folder)!r} was begun from Python, with its own loop: go on from there")
    was = {**known["config"], "kind": known["kind"], "classes": known["class_names"]}
    was["multi_label"] = known.get("multi_label", False)
    for name, value in said.items():
        if was.get(name) != value and name not in _SAID_AGAIN:
            begun = f"the project was begun with {was.get(name)!r}"
            raise ValueError(f"{name}={value!r}, but {begun}: leave it out, or use another folder")
    changed = {name: value for name, value in said.items() if name in _SAID_AGAIN}
    settings = SimpleNamespace(**known["config"] | changed, multi_label=was["multi_label"])
    return known["kind"], known["class_names"], settings


def _write_pictures(folder: Path, pool: _assemble.Pool, query: annotation.Query) -> None:
    """Images of a query that exist nowhere else, as files beside it."""
    for index in query.indices.tolist():
        path = folder / "images" / f"{index}.png"
        if pool.references[index].endswith(f"images/{index}.png") and not path.exists():
            path.parent.mkdir(exist_ok=True)
            files.write_bytes(path, images.png(images.as_bytes(pool.inputs[index], of=pool.inputs)))
