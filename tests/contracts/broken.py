"""A plugin of pytest that gives every suite members with one fault each: ``test_suites.py`` wants to see them fail.

A name ends in the test that has to notice: the beginning of that test's name. No other test of it is run.
"""

from tests.contracts import BROKEN


def pytest_configure(config):
    """After conftest, which has to come before jax."""
    import hypothesis

    # What fails need not be made small.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("broken", hypothesis.settings.get_profile("strict"), phases=phases)
    hypothesis.settings.load_profile("broken")
    for make in FAMILIES:
        family, members = make()
        BROKEN[family] = {f"broken_{name}": member for name, member in members.items()}


def pytest_collection_modifyitems(items):
    """After ``-k broken_`` has been asked for."""
    items[:] = [item for item in items if item.originalname.startswith(_noticing(item.nodeid))]


def _noticing(name):
    return name.rpartition(", ")[2].split("-")[0].rstrip("]") if "broken_" in name else "nothing"


def _files():
    import json
    import os
    import types

    def writer(write):
        def read(folder):
            return json.loads((folder / "file.json").read_text())

        old, new = (lambda folder, value=value: write(folder / "file.json", json.dumps([value])) for value in range(2))
        return types.SimpleNamespace(new=new, read=read, value=[1], old=old, is_read=False)

    def renamed_before_it_is_durable(path, text):
        temporary = path.with_name("other")
        temporary.write_text(text)
        os.replace(temporary, path)

    def in_place(path, text):
        path.write_text(text)

    def left_over(path, text):
        temporary = path.with_name("other")
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    return "files", {
        "durable too late, test_content_is_durable": writer(renamed_before_it_is_durable),
        "in place, test_content_is_durable": writer(in_place),
        "with what is left over, test_a_failure": writer(left_over),
    }


def _heuristics():
    import jax
    import jax.numpy as jnp

    from baal_jax import heuristics

    def spread(logits):
        scores = heuristics.bald(logits)
        return jnp.where(jnp.any(jnp.isnan(scores)), jnp.nan, scores)

    def ordered(logits):
        return heuristics.margin(logits) + 1e-5 * logits[0, ..., 0].astype(jnp.float32)

    def rough(outputs):
        return jnp.mean(jnp.sqrt(jnp.var(jax.nn.softmax(outputs.astype(jnp.float32)), axis=0)), axis=-1)

    return "heuristics", {
        "bald whose NaN spreads, test_an_example_does_not_change": jax.jit(spread),
        "entropy in half precision, test_shapes_and_dtypes": jax.jit(
            lambda logits: heuristics.entropy(logits).astype(logits.dtype)
        ),
        "least_confidence as it was traced, test_exported": lambda logits: heuristics.least_confidence(logits),
        "margin with an order of draws, test_equals": jax.jit(ordered),
        "mean_std without a gradient at 0, test_gradients": jax.jit(rough),
    }


def _selections():
    import functools

    import jax
    import jax.numpy as jnp

    from baal_jax import selection
    from baal_jax._util import numerics
    from baal_jax.selection._common import over_scores, top

    def at_random(key, scores, available):
        both = jax.random.uniform(key, scores.shape) + jax.random.normal(key, scores.shape)
        return numerics.rank_values(both, available)

    def above_the_mean(key, scores, available):
        return numerics.rank_values(jnp.abs(scores - jnp.nanmean(scores)), available)

    def late(key, scores, available):
        return numerics.rank_values(scores + jnp.arange(scores.shape[0], dtype=scores.dtype), available)

    def ranking(values):
        return lambda: over_scores(lambda logits: jnp.var(logits, axis=(0, 2)), values)

    @functools.partial(jax.jit, static_argnames="query_size")
    def anything(key, summary, available, query_size, labelled=None):
        return top(summary, jnp.ones_like(available), query_size)

    return "selections", {
        "top_k of what is labelled, test_picks": lambda: selection.top_k()._replace(select=anything),
        "top_k by place, test_a_permutation": ranking(late),
        "top_k beside the mean of the pool, test_what_is_hidden": ranking(above_the_mean),
        "power with a key used twice, test_no_key": ranking(at_random),
        "k_center that claims to read nothing, test_what_is_hidden": lambda: selection.k_center()._replace(
            reads_labelled=False
        ),
    }


def _metrics():
    import jax.numpy as jnp

    from baal_jax import metrics
    from tests.oracles import metrics as oracle

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
    import jax
    import jax.numpy as jnp

    import baal_jax as baal

    def without_a_network(model, trainer):
        """Random weights, and inputs that a draw scales."""

        def fit(key, dataset, labelled, previous=None):
            seen = jnp.where(labelled, dataset.targets.astype(jnp.float32), 0)
            known = seen @ jnp.cos(jnp.arange(len(labelled), dtype=jnp.float32))
            outputs = 3 if jnp.issubdtype(dataset.targets.dtype, jnp.integer) else 1
            return jax.random.normal(key, (4, outputs)) + known + jnp.sum(labelled, dtype=jnp.float32)

        def apply(state, draw, inputs):
            return (inputs * jax.random.normal(draw, (1, 4))) @ state

        return baal.Posterior(jax.jit(fit), lambda key, state, number: jax.random.split(key, number), apply)

    def changed(**parts):
        def build(model, trainer):
            posterior = without_a_network(model, trainer)
            return posterior._replace(**{name: part(getattr(posterior, name)) for name, part in parts.items()})

        return build

    def reads_its_batch(apply):
        return lambda state, draw, inputs: apply(state, draw, inputs) + 0.1 * jnp.mean(inputs)

    def of_one_mask(sample):
        return lambda key, state, number: jnp.repeat(key[None], number)

    def of_other_first_draws(sample):
        return lambda key, state, number: sample(jax.random.fold_in(key, number), state, number)

    def reads_all_targets(fit):
        return jax.jit(lambda key, dataset, labelled, previous=None: fit(key, dataset, labelled | jnp.any(labelled)))

    def of_a_fixed_key(fit):
        return jax.jit(lambda key, dataset, labelled, previous=None: fit(jax.random.key(0), dataset, labelled))

    return "posteriors", {
        "one that sees the other rows, test_a_draw_is_one_function": changed(apply=reads_its_batch),
        "one of a single mask, test_every_draw": changed(sample=of_one_mask),
        "one of other first draws, test_more_draws": changed(sample=of_other_first_draws),
        "one that reads all targets, test_unlabelled_examples": changed(fit=reads_all_targets),
        "one of a fixed key, test_fits_map_over_keys": changed(fit=of_a_fixed_key),
    }


def _stopping():
    import jax.numpy as jnp

    from baal_jax import stopping

    def with_update(update, memory=()):
        return stopping.Criterion(lambda outcome: memory, update)

    def grows(memory, outcome):
        values = jnp.append(memory, outcome.info.mean_score)
        return values, values[-1] < 0.3

    calls = []

    def counts_calls(memory, outcome):
        calls.append(None)
        return memory, (outcome.info.mean_score < 0.3) & (len(calls) == 1)

    return "stopping", {
        "low_uncertainty with a memory that grows, test_a_memory": with_update(grows, jnp.zeros(1)),
        "low_uncertainty that takes NaN for low, test_values_that_are_nan": with_update(
            lambda memory, outcome: (memory, ~(outcome.info.mean_score >= 0.3))
        ),
        "low_uncertainty that is asked once, test_seeds": with_update(counts_calls),
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


FAMILIES = [_heuristics, _selections, _files, _metrics, _posteriors, _sources, _stopping]
