"""What people say, as Label Studio exports it."""

import json

import jax
import jax.numpy as jnp

import baal_jax as baal
from baal_jax import selection
from baal_jax.training import tasks

NAMES = ["ape", "bee", "cat"]


def answer(name, when=None, who=1, number=None, **fields):
    """An annotation of a day in January."""
    value = {"choices": [name]} if number is None else {"number": number}
    result = {"from_name": "label", "to_name": "image", "type": next(iter(value)), "value": value, "id": "xyz"}
    times = {} if when is None else {"created_at": f"2026-01-{when:02d}T12:00:00Z"}
    return {"id": 7, "completed_by": who, "was_cancelled": False, "result": [result], **times, **fields}


def refused(when=None):
    return answer("ape", when, was_cancelled=True, result=[])


def exported(query, *annotations, targets=None):
    """The tasks of a query with these annotations, or with the right answers; in another order, with other fields."""
    tasks = json.loads(query.tasks.read_text())
    for number, task in enumerate(tasks):
        task |= {"id": 900 - number, "drafts": [], "project": 3, "meta": {}, "annotations": list(annotations)}
        if targets is not None:
            task["annotations"] = [answer(NAMES[targets[task["data"]["baal_index"]]])]
    return tasks[::-1]


def save(folder, tasks):
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def frequencies(num_classes, query_size=3, **options):
    """A loop whose posterior counts labels by the sign of the first input: what it predicts is known."""

    def fit(key, dataset, labelled, previous=None):
        hot = jax.nn.one_hot(dataset.targets, num_classes)
        side = dataset.inputs[:, 0] > 0
        parts = [jnp.sum(jnp.where((labelled & one)[:, None], hot, 0.0), axis=0) for one in (~side, side)]
        counts = jnp.stack(parts) + 1.0
        return jnp.log(counts / jnp.sum(counts, axis=1, keepdims=True))

    def apply(state, draw, inputs):
        return state[(inputs[:, 0] > 0).astype(jnp.int32)]

    posterior = baal.Posterior(fit, lambda key, state, num: jnp.zeros(num), apply, task=tasks.classification)
    return baal.active_loop(posterior, selection.random(), query_size=query_size, num_samples=1, **options)
