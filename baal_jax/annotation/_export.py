"""What comes out of a labelling project: its labels, predictions for everything, and the network."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import heuristics, pool
from baal_jax._util import checks, files, sources
from baal_jax.annotation._project import answers, read_project
from baal_jax.loop import ActiveLoop
from baal_jax.loop import query as query_pool
from baal_jax.metrics import model_average
from baal_jax.training import tasks
from baal_jax.typing import Dataset, Key, LoopState, PyTree

_ROWS = 512  # predicted at a time


def export(
    folder: str | Path, loop: ActiveLoop | None = None, inputs: PyTree = None, *, key: Key | None = None
) -> list[Path]:
    """Writes what a project knows as tables, and with a loop what its network says of everything, and the network.

    ``labels.csv`` has a line for every answer: id, reference, label, annotator, time, round. With ``loop``, fitted to
    all answers as for the next query, ``predictions.csv`` has a line for every example: the label if there is one, the
    predicted class, entropy and mutual information in nats, and all probabilities (numbers: mean and standard
    deviation over draws); and ``network.stablehlo`` is the function from one input ``[1, …]`` to these probabilities
    ``[1, C]`` (or means), weights and draws included, which ``jax.export.deserialize`` reads without this package.

    Args:
        folder: of the project.
        loop: as of :func:`propose`.
        inputs: ``[N, …]`` of the pool, or a source on the host.
        key: a typed key, of the whole project.

    Returns:
        The files that were written, in the folder.

    Raises:
        ValueError: no project, no answer to fit to, other inputs, or only a part of ``loop``, ``inputs`` and ``key``.
        ImportError: flatbuffers is not installed.
    """
    folder = Path(folder)
    content, labels = read_project(folder)
    names, references = content["class_names"], content["references"]
    shown = {index: label["target"] if names is None else names[label["target"]] for index, label in labels.items()}
    rows = [[i, references[i], shown[i], said["annotator"], said["time"], said["round"]] for i, said in labels.items()]
    heads = ["id", "reference", "label", "annotator", "time", "round"]
    written = [_write(folder / "labels.csv", heads, sorted(rows, key=lambda row: row[0]))]
    if loop is None:
        return written
    if inputs is None or key is None:
        raise ValueError("loop is given, but not inputs or key: predictions need all of them")
    answered = answers(folder)
    on_host = sources.is_source(inputs)
    given = len(inputs) if on_host else checks.leading_axis("inputs", inputs)
    if given != len(references):
        raise ValueError(f"inputs holds {given} examples, but the project {len(references)}: pass its pool")
    if not int(pool.num_labelled(answered)):
        raise ValueError(f"folder={str(folder)!r} has no answers yet: ingest some before predictions are made")
    checks.optional_import("flatbuffers", "experiments")  # in which jax.export writes
    tasks.admit("pool", Dataset(inputs))
    # The keys of the next query, so that the network is the one that it asks.
    state = LoopState(jax.random.split(key)[0], answered, None, step=jnp.maximum(answered.round - 1, 0))
    fitted, selection, _ = query_pool(loop, state, Dataset(inputs))
    after = loop.round.advance(state, fitted, selection)

    def outputs_of(one: PyTree) -> jax.Array:
        outputs = loop.predict(after, one)
        if names is not None:
            return jnp.exp(model_average(outputs))
        return jnp.mean(outputs.reshape(*outputs.shape[:2], -1)[..., 0], axis=0)[:, None]

    table = []
    for start in range(0, given, _ROWS):
        ids = np.arange(start, min(start + _ROWS, given))
        some = sources.load(inputs, ids) if on_host else jax.tree.map(lambda leaf, ids=ids: leaf[ids], inputs)
        outputs = loop.predict(after, some)
        means = np.asarray(outputs_of(some), np.float64)
        if names is None:
            spread = np.asarray(jnp.std(outputs.reshape(*outputs.shape[:2], -1)[..., 0], axis=0), np.float64)
            table += [[means[i, 0], spread[i]] for i in range(len(ids))]
            continue
        doubts = [np.asarray(score(outputs), np.float64) for score in (heuristics.entropy, heuristics.bald)]
        best = means.argmax(axis=1)
        table += [[names[best[i]], doubts[0][i], doubts[1][i], *means[i]] for i in range(len(ids))]
    heads = ["mean", "deviation"] if names is None else ["predicted", "entropy", "mutual_information", *names]
    lines = ([i, references[i], shown.get(i, ""), *row] for i, row in enumerate(table))
    written.append(_write(folder / "predictions.csv", ["id", "reference", "label", *heads], lines))
    first = sources.load(inputs, np.arange(1)) if on_host else jax.tree.map(lambda leaf: leaf[:1], inputs)
    kinds = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first)
    platforms = list(dict.fromkeys(["cpu", jax.default_backend()]))
    exported = jax.export.export(jax.jit(outputs_of), platforms=platforms)(kinds)
    written.append(files.write_bytes(folder / "network.stablehlo", bytes(exported.serialize())))
    return written


def _write(path: Path, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([[repr(float(cell)) if isinstance(cell, float) else cell for cell in row] for row in rows])
    return files.write_text(path, text.getvalue())
