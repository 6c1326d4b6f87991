"""``python -m baal_jax propose`` and ``ingest``: a labelling project from files alone."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np

from baal_jax import annotation, features, losses, posteriors, selection
from baal_jax import data as data_sets
from baal_jax._cli import _networks
from baal_jax._util import checks, files, images
from baal_jax.annotation import Query
from baal_jax.loop import active_loop
from baal_jax.training import trainer

PICTURES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Propose:
    """Writes what people should label next: as JSON, and as tasks for Label Studio.

    The first call begins the project and needs --data and, for classes, --classes. Later calls need the folder alone:
    they fit the network to the answers that `ingest` has kept, score what is left, and ask for the best. While answers
    are missing the same query is written again.

        python -m baal_jax propose cats --data photos/ --classes cat dog --model cnn
        # import query-0000.label_studio.json into Label Studio, with label_config.xml as its interface; label; export
        python -m baal_jax ingest cats export.json
        python -m baal_jax propose cats
    """

    folder: Path
    """Of the project."""

    data: Path | None = None
    """The pool: a folder of PNG and JPEG images, or an .npz file with `inputs` and perhaps `references` (what people
    are shown: URLs, or texts) and `embeddings` (a row of numbers for each, for --cold-start). Inputs that are images
    are written as PNG files where there are no references."""

    classes: tuple[str, ...] | None = None
    """Names of the classes; without them people give numbers."""

    kind: Literal["image", "text", "audio"] | None = None
    """Of what people are shown; image by default."""

    url_prefix: str | None = None
    """What stands before the names of image files, for Label Studio's local storage: /data/local-files/?d=photos/."""

    image_size: int | None = None
    """Images of a folder are resized to this many pixels on each side; 32 by default."""

    model: str | None = None
    """mlp, cnn, or package.module:factory, where factory(num_outputs) returns a linen module, or a function from rngs
    to an nnx module; mlp by default."""

    rate: float | None = None
    """Dropout of mlp and cnn; 0.5 by default."""

    posterior: str | None = None
    """mc_dropout by default; or deep_ensemble, swag, laplace, …"""

    strategy: str | None = None
    """power_bald by default, for numbers variance; or bald, margin, badge, batch_bald, …"""

    num_initial: int | None = None
    """Examples of the first query; 20 by default."""

    cold_start: str | None = None
    """What picks them: random by default; or typiclust, k_means, prob_cover, … from `embeddings` in the .npz file, or
    else from the inputs as they are."""

    query_size: int | None = None
    """Examples of every other query; 20 by default."""

    num_samples: int | None = None
    """Draws of the posterior; 20 by default."""

    num_steps: int | None = None
    """Adam steps of a fit; 500 by default."""

    batch_size: int | None = None
    """Labelled examples in a step; 32 by default."""

    learning_rate: float | None = None
    """Of Adam; 0.001 by default."""

    seed: int | None = None
    """Of everything; 0 by default."""

    give_up: bool = False
    """Does not wait for what is unanswered in the last query."""


@dataclasses.dataclass(frozen=True)
class Ingest:
    """Keeps the answers of an export of Label Studio: all of them or, where something is wrong, none.

    Skipped tasks are not asked for again. An export may hold any part of what has been asked for; a later one corrects
    earlier answers.

        python -m baal_jax ingest cats export.json
    """

    folder: Path
    """Of the project."""

    export: Path
    """The file that Label Studio exported as JSON (not JSON-MIN)."""

    several: Literal["newest", "majority"] = "newest"
    """What counts where several people answered."""


class Settings(NamedTuple):
    """What project.json keeps, with what counts where nothing is said."""

    data: str
    url_prefix: str = ""
    image_size: int = 32
    model: str = "mlp"
    rate: float = 0.5
    posterior: str = "mc_dropout"
    strategy: str = "power_bald"
    num_initial: int = 20
    cold_start: str = "random"
    query_size: int = 20
    num_samples: int = 20
    num_steps: int = 500
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0


def main_propose(argv: list[str]) -> int:
    """Runs ``propose``.

    Args:
        argv: what follows the name of the command.

    Returns:
        0, or 1 where it cannot be done; the reason is on standard error.

    Raises:
        ImportError: tyro, or what the data need, is not installed.
    """
    wanted = _parse(Propose, "propose", argv)
    try:
        query = propose(wanted)
    except ValueError as error:
        print(f"propose: {error}", file=sys.stderr)
        return 1
    answered = len(query.indices) - len(query.waiting)
    print(f"round {query.round}: {len(query.indices)} examples, {answered} answered\n{query.tasks}")
    return 0


def main_ingest(argv: list[str]) -> int:
    """Runs ``ingest``.

    Args:
        argv: what follows the name of the command.

    Returns:
        0, or 1 where the export is not as it should be; the reason is on standard error.

    Raises:
        ImportError: tyro is not installed.
    """
    wanted = _parse(Ingest, "ingest", argv)
    try:
        found = annotation.ingest(wanted.folder, wanted.export, several=wanted.several)
    except ValueError as error:
        print(f"ingest: {error}", file=sys.stderr)
        return 1
    counts = {name: len(ids) for name, ids in found._asdict().items()}
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 0


def propose(wanted: Propose) -> Query:
    """The next query of the project that a command line names.

    Args:
        wanted: the command line.

    Returns:
        A :class:`~baal_jax.annotation.Query`.

    Raises:
        ValueError: something is missing, or differs from how the project was begun.
    """
    import jax
    import optax

    known = _known(wanted.folder)
    if known is None and wanted.data is None:
        raise ValueError(f"folder={str(wanted.folder)!r} holds no project yet: begin one with --data")
    kind, class_names, settings = _settings(wanted, known)
    inputs, references, embeddings = _pool(settings, kind)
    is_number = class_names is None
    model = _networks.make(settings.model, 1 if is_number else len(class_names), inputs.shape[1:], settings.rate)
    if settings.posterior not in posteriors.REGISTRY:
        raise ValueError(f"posterior={settings.posterior!r} is unknown: use one of {', '.join(posteriors.REGISTRY)}")
    fit = trainer(
        optax.adam(settings.learning_rate),
        losses.squared_error if is_number else losses.cross_entropy,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
    )
    loop = active_loop(
        posteriors.REGISTRY[settings.posterior](model, fit),
        selection.by_name(settings.strategy),
        query_size=settings.query_size,
        num_samples=settings.num_samples,
        features=features.last_hidden(model),
    )
    annotation.start(
        wanted.folder, references=references, class_names=class_names, kind=kind, config=settings._asdict()
    )
    query = annotation.propose(
        wanted.folder,
        loop,
        inputs,
        key=jax.random.key(settings.seed),
        num_initial=settings.num_initial,
        cold_start=selection.by_name(settings.cold_start),
        embeddings=embeddings,
        give_up=wanted.give_up,
    )
    _write_pictures(wanted.folder, inputs, references, query)
    return query


def _parse(command: Any, name: str, argv: list[str]) -> Any:
    tyro = checks.optional_import("tyro", "experiments")
    return tyro.cli(command, prog=f"python -m baal_jax {name}", args=argv, config=(tyro.conf.PositionalRequiredArgs,))


def _known(folder: Path) -> dict[str, Any] | None:
    path = folder / "project.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _settings(wanted: Propose, known: dict[str, Any] | None) -> tuple[Any, list[str] | None, Settings]:
    """What was said when the project began, or is said now; both must agree."""
    said = {name: value for name, value in dataclasses.asdict(wanted).items() if value is not None}
    said = {name: value for name, value in said.items() if name not in ("folder", "give_up")}
    said = {name: files.plain(value) for name, value in said.items()}
    if known is None:
        class_names = said.pop("classes", None)
        kind = said.pop("kind", "image")
        if class_names is None:
            said.setdefault("strategy", "variance")
        return kind, class_names, Settings(**said)
    if "data" not in known["config"]:
        raise ValueError(f"folder={str(wanted.folder)!r} was begun from Python, with its own loop: go on from there")
    was = {**known["config"], "kind": known["kind"], "classes": known["class_names"]}
    for name, value in said.items():
        if was.get(name) != value:
            raise ValueError(
                f"{name}={value!r}, but the project was begun with {was.get(name)!r}: leave it out, or use another "
                "folder"
            )
    return known["kind"], known["class_names"], Settings(**known["config"])


def _pool(settings: Settings, kind: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Inputs, what is shown of them, and numbers that a cold start can compare."""
    path = Path(settings.data)
    if path.is_dir():
        paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
        if not paths:
            raise ValueError(f"data={settings.data!r} holds no {', '.join(PICTURES)} files: give a folder of images")
        size = (settings.image_size, settings.image_size)
        pictures = []
        for file in paths:
            try:
                pictures.append(images.decode(file.read_bytes(), size, 3))
            except (ValueError, OSError) as error:
                raise ValueError(f"{file} cannot be read as an image ({error}): repair or remove it") from error
        inputs = np.stack(pictures)
        names = [file.relative_to(path).as_posix() for file in paths]
        if settings.url_prefix:  # a name is part of a URL then
            names = [settings.url_prefix + quote(name) for name in names]
        return inputs, names, _flat(inputs)
    if not path.is_file() or path.suffix != ".npz":
        raise ValueError(f"data={settings.data!r} is neither a folder of images nor an .npz file")
    with np.load(path, allow_pickle=False) as found:
        if "inputs" not in found:
            raise ValueError(f"data={settings.data!r} lacks inputs: it has {', '.join(found) or 'no arrays'}")
        inputs = np.asarray(data_sets.from_arrays(found["inputs"]).inputs)
        embeddings = _flat(
            np.asarray(data_sets.from_arrays(found["embeddings"]).inputs if "embeddings" in found else inputs)
        )
        if "references" in found:
            references = [str(reference) for reference in found["references"]]
        elif kind == "image" and inputs.ndim == 4 and inputs.shape[-1] in (1, 3):
            references = [f"{settings.url_prefix}images/{i}.png" for i in range(len(inputs))]
        else:
            raise ValueError(f"data={settings.data!r} lacks references: give what people are shown, one for each input")
    for name, rows in (("references", references), ("embeddings", embeddings)):
        if len(rows) != len(inputs):
            raise ValueError(f"data={settings.data!r} holds {len(rows)} {name} for {len(inputs)} inputs")
    return inputs, references, embeddings


def _flat(rows: np.ndarray) -> np.ndarray:
    """``float32[N, D]``; bytes as numbers between 0 and 1."""
    flat = rows.reshape(len(rows), -1)
    return flat.astype(np.float32) / 255 if rows.dtype == np.uint8 else flat.astype(np.float32)


def _write_pictures(folder: Path, inputs: np.ndarray, references: list[str], query: Query) -> None:
    """Images of a query that exist nowhere else, as files beside it."""
    for index in query.indices.tolist():
        if references[index].endswith(f"images/{index}.png"):
            path = folder / "images" / f"{index}.png"
            if not path.exists():
                image = inputs[index]
                if image.dtype != np.uint8:
                    low, high = float(inputs.min()), float(inputs.max())
                    image = np.round((image - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
                files.write_bytes(path, images.png(image))
