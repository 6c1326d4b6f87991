"""``python -m baal_jax propose`` and ``ingest``: a labelling project from files alone."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax

from baal_jax import annotation, features, selection, study
from baal_jax._cli import _assemble
from baal_jax._util import files, images
from baal_jax.loop import active_loop


@dataclasses.dataclass(frozen=True)
class Propose:
    """Writes what people should label next: as JSON, and as tasks for Label Studio.

    The first call begins the project and needs --data and, for classes, --classes. Later calls need the folder alone:
    they fit to the answers that `ingest` has kept and ask for the best that is left, or again for what is missing.
    Compiled programs are kept in baal_jax of your folder of caches (~/.cache).

        python -m baal_jax propose cats --data photos/ --classes cat dog --model cnn
        # import query-0000.label_studio.json into Label Studio, with label_config.xml as its interface; label; export
        python -m baal_jax ingest cats export.json
        python -m baal_jax propose cats

    Attributes:
        folder: Of the project.
        data: The pool: a folder of PNG and JPEG images, or an .npz file with `inputs` and perhaps `references` (what
            people are shown: URLs, or texts) and `embeddings` (a row of numbers for each, for --cold-start). Inputs
            that are images are written as PNG files where there are no references.
        classes: Names of the classes; without them people give numbers.
        kind: Of what people are shown; image by default.
        url_prefix: Put before names of image files, for Label Studio's local storage: /data/local-files/?d=photos/.
        image_size: Images of a folder are resized to this many pixels on each side; 32 by default.
        model: mlp by default, cnn, or package.module:factory (num_outputs -> linen module, or function rngs -> nnx).
        rate: Dropout of mlp and cnn; 0.5 by default.
        posterior: mc_dropout by default; or deep_ensemble, swag, laplace, …
        strategy: power_bald by default, for numbers variance; or bald, margin, badge, batch_bald, …
        num_initial: Examples of the first query; 20 by default.
        cold_start: What picks them: random by default; or typiclust, k_means, prob_cover, … from `embeddings` in the
            .npz file, or else from the inputs as they are.
        query_size: Examples of every other query; 20 by default.
        num_samples: Draws of the posterior; 20 by default.
        num_steps: Adam steps of a fit; 500 by default.
        batch_size: Labelled examples in a step; 32 by default.
        learning_rate: Of Adam; 0.001 by default.
        seed: Of everything; 0 by default.
        give_up: Does not wait for what is unanswered in the last query.
    """

    folder: Path
    data: Path | None = None
    classes: tuple[str, ...] | None = None
    kind: Literal["image", "text", "audio"] | None = None
    url_prefix: str | None = None
    image_size: int | None = None
    model: str | None = None
    rate: float | None = None
    posterior: str | None = None
    strategy: str | None = None
    num_initial: int | None = None
    cold_start: str | None = None
    query_size: int | None = None
    num_samples: int | None = None
    num_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    give_up: bool = False


@dataclasses.dataclass(frozen=True)
class Ingest:
    """Keeps the answers of an export of Label Studio: all of them or, where something is wrong, none.

    Skipped tasks are not asked for again. An export may hold any part of what was asked for; a later one corrects it.

        python -m baal_jax ingest cats export.json

    Attributes:
        folder: Of the project.
        export: The file that Label Studio exported as JSON (not JSON-MIN).
        several: What counts where several people answered.
    """

    folder: Path
    export: Path
    several: Literal["newest", "majority"] = "newest"


# What project.json keeps, with what counts where nothing is said.
_SETTINGS: dict[str, Any] = {"data": None, "url_prefix": "", "image_size": 32, "model": "mlp", "rate": 0.5}
_SETTINGS |= {"posterior": "mc_dropout", "strategy": "power_bald", "num_initial": 20, "cold_start": "random"}
_SETTINGS |= {"query_size": 20, "num_samples": 20, "num_steps": 500, "batch_size": 32, "learning_rate": 1e-3, "seed": 0}


def propose(wanted: Propose) -> None:
    """Writes the next query of the project that a command line names, and prints where its tasks are."""
    study.use_compilation_cache()
    path = wanted.folder / "project.json"
    known = files.read_json(path, "restore it from a backup") if path.exists() else None
    if known is None and wanted.data is None:
        raise ValueError(f"folder={str(wanted.folder)!r} holds no project yet: begin one with --data")
    kind, class_names, settings = _settings(wanted, known)
    pool = _assemble.pool(settings, kind)
    num_classes = None if class_names is None else len(class_names)
    model, by_name = _assemble.learners(settings, [settings.posterior], num_classes, pool.inputs.shape[1:])
    acquisition, hidden = selection.by_name(settings.strategy), features.last_hidden(model)
    sizes: dict[str, Any] = {"query_size": settings.query_size, "num_samples": settings.num_samples}
    loop = active_loop(by_name[settings.posterior], acquisition, features=hidden, **sizes)
    about = {"class_names": class_names, "kind": kind, "config": vars(settings)}
    annotation.start(wanted.folder, references=pool.references, **about)
    first: dict[str, Any] = {"cold_start": selection.by_name(settings.cold_start), "embeddings": pool.embeddings}
    first |= {"num_initial": settings.num_initial, "key": jax.random.key(settings.seed)}
    query = annotation.propose(wanted.folder, loop, pool.inputs, give_up=wanted.give_up, **first)
    _write_pictures(wanted.folder, pool, query)
    answered = len(query.indices) - len(query.waiting)
    print(f"round {query.round}: {len(query.indices)} examples, {answered} answered\n{query.tasks}")


def ingest(wanted: Ingest) -> None:
    """Keeps the answers of the export that a command line names, and prints how many of them are new."""
    ingested = annotation.ingest(wanted.folder, wanted.export, several=wanted.several)
    print(", ".join(f"{len(ids)} {name}" for name, ids in ingested._asdict().items()))


def _settings(wanted: Propose, known: dict[str, Any] | None) -> tuple[Any, list[str] | None, SimpleNamespace]:
    """What was said when the project began, or is said now; both must agree."""
    options = {name: value for name, value in vars(wanted).items() if name not in ("folder", "give_up")}
    said = {name: files.plain(value) for name, value in options.items() if value is not None}
    if known is None:
        class_names = said.pop("classes", None)
        kind = said.pop("kind", "image")
        if class_names is None:
            said.setdefault("strategy", "variance")
        return kind, class_names, SimpleNamespace(**_SETTINGS | said)
    if known["config"].keys() != _SETTINGS.keys():
        raise ValueError(f"folder={str(wanted.folder)!r} was begun from Python, with its own loop: go on from there")
    was = {**known["config"], "kind": known["kind"], "classes": known["class_names"]}
    for name, value in said.items():
        if was.get(name) != value:
            begun = f"the project was begun with {was.get(name)!r}"
            raise ValueError(f"{name}={value!r}, but {begun}: leave it out, or use another folder")
    return known["kind"], known["class_names"], SimpleNamespace(**known["config"])


def _write_pictures(folder: Path, pool: _assemble.Pool, query: annotation.Query) -> None:
    """Images of a query that exist nowhere else, as files beside it."""
    for index in query.indices.tolist():
        path = folder / "images" / f"{index}.png"
        if pool.references[index].endswith(f"images/{index}.png") and not path.exists():
            path.parent.mkdir(exist_ok=True)
            files.write_bytes(path, images.png(images.as_bytes(pool.inputs[index], of=pool.inputs)))
