"""What comes out of a labelling project: its labels, predictions for everything, and the network."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import heuristics, pool
from baal_jax._util import checks, files
from baal_jax.annotation._assess import Assessment, assessed, rows_of
from baal_jax.annotation._project import Project, answers_of, means_of, read
from baal_jax.annotation._propose import fitted_to, num_inputs
from baal_jax.loop import ActiveLoop
from baal_jax.training import tasks
from baal_jax.typing import Dataset, Key, LoopState, PyTree

_ROWS = 512  # predicted at a time


def export(
    folder: str | Path,
    loop: ActiveLoop | None = None,
    inputs: PyTree = None,
    *,
    key: Key | None = None,
    folds: int = 5,
) -> list[Path]:
    """Writes what a project knows as tables, and with a loop what its network says of everything, and the network.

    ``labels.csv`` has a line for every answer: id, reference, label (of several a JSON list, and a column of those that
    are unknown), annotator, time, round; ``disagreements.csv`` one for each annotator of an answer about which they do
    not agree. With ``loop``, fitted to all answers as for the next query, ``predictions.csv`` has a line for every
    example: the label if there is one, the predicted class, entropy and mutual information in nats, and all
    probabilities (numbers: mean and standard deviation over draws); ``network.stablehlo`` is the function from one
    input ``[1, …]`` to these probabilities ``[1, C]`` (or means), weights and draws included, which
    ``jax.export.deserialize`` reads without this package; and ``learning_curve.csv`` says how good fits to the labels
    of the first rounds are, by :func:`assess`.

    Args:
        folder: of the project.
        loop: as of :func:`propose`.
        inputs: ``[N, …]`` of the pool, or a source on the host.
        key: a typed key, of the whole project.
        folds: of the cross-validation; 0 for no learning curve, and there is none of fewer than four labels.

    Returns:
        The files that were written, in the folder.

    Raises:
        ValueError: no project, no answer to fit to, other inputs, or only a part of ``loop``, ``inputs`` and ``key``.
        ImportError: flatbuffers is not installed.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> _ = annotation.start(folder, references=["a.png", "b.png"], class_names=["cat", "dog"])
        >>> np.savetxt(f"{folder}/said.csv", [["id", "label"], ["1", "dog"]], fmt="%s", delimiter=",")
        >>> _ = annotation.ingest(folder, f"{folder}/said.csv")
        >>> [path.name for path in annotation.export(folder)]
        ['labels.csv']
    """
    folder = Path(folder)
    project = read(folder)
    if folds < 0 or folds == 1:
        raise ValueError(f"folds={folds} leaves nothing out: give 0, or at least 2")
    for name in ("disagreements.csv", "learning_curve.csv"):  # of before, if it is not written anew
        (folder / name).unlink(missing_ok=True)
    references, labels = project.content["references"], project.labels
    heads = ["id", "reference", "label", "annotator", "time"]
    rows = [[i, references[i], _cell(project, said["target"]), said["annotator"], said["time"], said["round"]]
            for i, said in sorted(labels.items())]  # fmt: skip
    more = ["round"]
    if names := project.is_multi_label and project.names:
        more.append("unknown")
        for row, said in zip(rows, (labels[i]["target"] for i in sorted(labels)), strict=True):
            left = [name for i, name in enumerate(names) if i >= len(said) or said[i] < 0]
            row.append(json.dumps(left, ensure_ascii=False) if left else "")
    written = [_write(folder / "labels.csv", [*heads, *more], rows)]
    if any("said" in said for said in labels.values()):
        rows = [[i, references[i], _cell(project, target), who, when]
                for i, said in sorted(labels.items()) for who, target, when in said.get("said", ())]  # fmt: skip
        written.append(_write(folder / "disagreements.csv", heads, rows))
    if loop is None:
        return written
    if inputs is None or key is None:
        raise ValueError("loop is given, but not inputs or key: predictions need all of them")
    num_inputs(project, inputs)
    answered = answers_of(project)
    if not (num_labels := int(pool.num_labelled(answered))):
        raise ValueError(f"folder={str(folder)!r} has no answers yet: ingest some before predictions are made")
    checks.optional_import("flatbuffers", "experiments")  # in which jax.export writes
    tasks.admit("pool", Dataset(inputs))
    # The keys of the next query, so that the network is the one that it asks.
    after, *_ = fitted_to(project, loop, inputs, key, answered)
    written.append(_write_predictions(folder, project, loop, after, inputs))
    kinds = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), rows_of(inputs, [0]))
    platforms = list(dict.fromkeys(["cpu", jax.default_backend()]))

    def network(one: PyTree) -> jax.Array:
        return means_of(project.content, loop.predict(after, one))

    exported = jax.export.export(jax.jit(network), platforms=platforms)(kinds)
    written.append(files.write_bytes(folder / "network.stablehlo", bytes(exported.serialize())))
    if folds and num_labels >= 4:
        found = assessed(project, loop, inputs, key=key, folds=folds, points=4)
        written.append(_write(folder / "learning_curve.csv", _curve_heads(found), found.curve))
    return written


def _curve_heads(found: Assessment) -> list[str]:
    return ["labels", found.metric, "standard_error", f"{found.metric}_of_the_first_query"]


def _cell(project: Project, target: Any) -> Any:
    return target if project.names is None else project.text(target)


def _write_predictions(folder: Path, project: Project, loop: ActiveLoop, after: LoopState, inputs: PyTree) -> Path:
    names, references, table = project.names, project.content["references"], []
    scores = heuristics.entropy, heuristics.bald
    if project.is_multi_label:
        scores = tuple(map(heuristics.multi_label, scores))
    for start in range(0, len(references), _ROWS):
        outputs = loop.predict(after, rows_of(inputs, np.arange(start, min(start + _ROWS, len(references)))))
        means = np.asarray(means_of(project.content, outputs), np.float64)
        if not np.isfinite(means).all():
            raise ValueError("loop predicts what is not finite: look at the learning rate and the loss")
        if names is None:
            spread = np.asarray(jnp.std(outputs.reshape(*outputs.shape[:2], -1)[..., 0], axis=0), np.float64)
            table += np.stack([means[:, 0], spread], axis=1).tolist()
            continue
        doubts = [np.asarray(score(outputs), np.float64) for score in scores]
        best = means >= 0.5 if project.is_multi_label else means.argmax(axis=1)
        table += [[project.text(best[i]), doubts[0][i], doubts[1][i], *means[i]] for i in range(len(means))]
    heads = ["mean", "deviation"] if names is None else ["predicted", "entropy", "mutual_information", *names]
    shown = {i: _cell(project, said["target"]) for i, said in project.labels.items()}
    lines = ([i, references[i], shown.get(i, ""), *row] for i, row in enumerate(table))
    return _write(folder / "predictions.csv", ["id", "reference", "label", *heads], lines)


def _write(path: Path, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([[repr(float(cell)) if isinstance(cell, float) else cell for cell in row] for row in rows])
    return files.write_text(path, text.getvalue())
