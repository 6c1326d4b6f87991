"""Members with one fault each, which ``test_suites.py`` wants to see refused.

A name ends in the test that has to notice: the beginning of that test's name. No other test of it is run.
"""

import functools
import json
import os
import types

import jax
import jax.numpy as jnp

import baal_jax as baal
from baal_jax import heuristics, metrics, selection, stopping
from baal_jax._util import numerics
from baal_jax.selection._common import over_scores, top
from tests import fixtures
from tests.oracles import metrics as oracle


def _files():
    def read(folder):
        return json.loads((folder / "file.json").read_text())

    def writer(durable=True, in_place=False):
        def write(folder, value):
            path = folder / "file.json"
            temporary = path if in_place else folder / "other"
            with temporary.open("w") as file:
                file.write(json.dumps(value))
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            if not in_place:
                os.replace(temporary, path)
            opened = os.open(folder, os.O_RDONLY)
            os.fsync(opened)
            os.close(opened)

        new, old = (lambda folder, value=value: write(folder, [value]) for value in range(2))
        return types.SimpleNamespace(new=new, read=read, value=[0], old=old)

    return "files", {
        "durable too late, test_content_is_durable": writer(durable=False),
        "in place, test_content_is_durable": writer(in_place=True),
        "with what is left over, test_a_failure": writer(),
    }


def _heuristics():
    def spread(logits):
        scores = heuristics.bald(logits)
        return jnp.where(jnp.any(jnp.isnan(scores)), jnp.nan, scores)

    def ordered(logits):
        return heuristics.margin(logits) + 1e-5 * logits[0, ..., 0].astype(jnp.float32)

    def rough(outputs):
        return jnp.mean(jnp.sqrt(jnp.var(jax.nn.softmax(outputs.astype(jnp.float32)), axis=0)), axis=-1)

    half = jax.jit(lambda logits: heuristics.entropy(logits).astype(logits.dtype))
    return "heuristics", {
        "bald whose NaN spreads, test_an_example_does_not_change": jax.jit(spread),
        "entropy in half precision, test_shapes_and_dtypes": half,
        "least_confidence as it was traced, test_shapes_and_dtypes": lambda logits: heuristics.least_confidence(logits),
        "margin with an order of draws, test_equals": jax.jit(ordered),
        "mean_std without a gradient at 0, test_gradients": jax.jit(rough),
    }


def _selections():
    def ranking(values):
        def ranked(key, scores, available):
            return numerics.rank_values(values(key, scores), available)

        return lambda: over_scores(lambda logits: jnp.var(logits, axis=(0, 2)), ranked)

    def at_random(key, scores):
        return jax.random.uniform(key, scores.shape) + jax.random.normal(key, scores.shape)

    @functools.partial(jax.jit, static_argnames="query_size")
    def anything(key, summary, available, query_size, labelled=None):
        return top(summary, jnp.ones_like(available), query_size)

    places = ranking(lambda key, scores: scores + jnp.arange(scores.shape[0], dtype=scores.dtype))
    beside = ranking(lambda key, scores: jnp.abs(scores - jnp.nanmean(scores)))
    return "selections", {
        "top_k of what is labelled, test_picks": lambda: selection.top_k()._replace(select=anything),
        "top_k by place, test_exported": places,
        "top_k beside the mean of the pool, test_what_is_hidden": beside,
        "power with a key used twice, test_no_key": ranking(at_random),
        "k_center that claims to read nothing, test_what_is_hidden": lambda: selection.k_center()._replace(
            reads_labelled=False
        ),
    }


def _metrics():
    def of_unknown_too(log_probs, targets):
        return metrics.nll(log_probs, jnp.maximum(targets, 0))

    def by_place(predicted, targets):
        weights = jnp.linspace(0.5, 1.5, targets.size, dtype=jnp.float32).reshape(targets.shape)
        return metrics.mae(weights * predicted, weights * targets)

    def over_all(log_probs, targets):
        return metrics.brier(log_probs, targets) * jnp.mean(targets >= 0, dtype=jnp.float32)

    return "metrics", {
        "nll of what is unknown, test_unknown_targets": ("classes", of_unknown_too, oracle.nll),
        "mae by place, test_unknown_targets_order": ("values", by_place, oracle.mae),
        "brier over a constant number, test_equals": ("classes", over_all, oracle.brier),
    }


def _posteriors():
    def fit(key, dataset, labelled, previous=None):
        """Random weights, and inputs that a draw scales."""
        seen = jnp.where(labelled, dataset.targets.astype(jnp.float32), 0)
        known = seen @ jnp.cos(jnp.arange(len(labelled), dtype=jnp.float32))
        outputs = 3 if jnp.issubdtype(dataset.targets.dtype, jnp.integer) else 1
        return jax.random.normal(key, (4, outputs)) + known + jnp.sum(labelled, dtype=jnp.float32)

    def apply(state, draw, inputs):
        return (inputs * jax.random.normal(draw, (1, 4))) @ state

    def reads_all_targets(key, dataset, labelled, previous=None):
        return fit(key, dataset, labelled | jnp.any(labelled))

    def of_a_fixed_key(key, dataset, labelled, previous=None):
        return fit(jax.random.key(0), dataset, labelled)

    def reads_its_batch(state, draw, inputs):
        return apply(state, draw, inputs) + 0.1 * jnp.mean(inputs)

    def of_other_first_draws(key, state, number):
        return jax.random.split(jax.random.fold_in(key, number), number)

    def built(fit=fit, sample=fixtures.split, apply=apply):
        return lambda model, trainer: baal.Posterior(jax.jit(fit), sample, apply)

    return "posteriors", {
        "one that sees the other rows, test_a_draw_is_one_function": built(apply=reads_its_batch),
        "one of a single mask, test_every_draw": built(sample=lambda key, state, number: jnp.repeat(key[None], number)),
        "one of other first draws, test_more_draws": built(sample=of_other_first_draws),
        "one that reads all targets, test_unlabelled_examples": built(reads_all_targets),
        "one of a fixed key, test_fits_map_over_keys": built(of_a_fixed_key),
    }


def _stopping():
    def grows(memory, outcome):
        values = jnp.append(memory, outcome.info.mean_score)
        return values, values[-1] < 0.3

    calls = []

    def counts_calls(memory, outcome):
        calls.append(None)
        return memory, (outcome.info.mean_score < 0.3) & (len(calls) == 1)

    def takes_nan(memory, outcome):
        return memory, ~(outcome.info.mean_score >= 0.3)

    return "stopping", {
        "low_uncertainty with a memory that grows, test_a_memory": stopping.Criterion(lambda _: jnp.zeros(1), grows),
        "low_uncertainty that takes NaN for low, test_values_that_are_nan": stopping.Criterion(lambda _: (), takes_nan),
        "low_uncertainty that is asked once, test_seeds": stopping.Criterion(lambda _: (), counts_calls),
    }


def _sources():
    class Sorted(list):
        def __getitems__(self, ids):
            return [self[i] for i in sorted(ids)]

    return "sources", {
        "list without its last row, test_predictions": lambda rows, folder: list(rows[:-1]),
        "list in another order, test_rounds": lambda rows, folder: list(rows[::-1]),
        "whole batches in an order of their own, test_examples": lambda rows, folder: Sorted(rows),
    }


FAMILIES = dict(make() for make in (_files, _heuristics, _selections, _metrics, _posteriors, _stopping, _sources))
