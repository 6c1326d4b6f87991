"""What every metric and every set of metrics does, against oracles in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import metrics
from tests.contracts import members
from tests.fixtures import make_logits
from tests.oracles import metrics as oracle

EXAMPLES, CLASSES, DRAWS, LEVELS = 24, 4, 5, (0.9, 0.05, 0.5)
AVERAGED = ("precision", "recall", "f1", "classwise_ece")
BOTH = ("confusion_matrix", "ece_per_class", "adaptive_ece", "auroc", "average_precision")

# Name → the kind of its inputs, the metric, its oracle.
METRICS = {
    **{
        name: ("classes", getattr(metrics, name), getattr(oracle, name))
        for name in ("accuracy", "nll", "brier", "ece", "reliability", *BOTH)
    },
    **{
        name: ("classes", functools.partial(getattr(metrics, name), average=None), getattr(oracle, name))
        for name in AVERAGED
    },
    "rmse": ("values", metrics.rmse, oracle.rmse),
    "mae": ("values", metrics.mae, oracle.mae),
    "gaussian_crps": ("moments", metrics.gaussian_crps, oracle.gaussian_crps),
    "coverage": ("bounds", metrics.coverage, oracle.coverage),
    "pinball": ("quantiles", *(functools.partial(part.pinball, levels=LEVELS) for part in (metrics, oracle))),
    "crps": ("draws", metrics.crps, oracle.crps),
    "crps_fair": ("draws", *(functools.partial(part.crps, fair=True) for part in (metrics, oracle))),
    "classification": (
        "logits",
        metrics.classification(top_k=(2, 3), num_bins=6, diagnostics=True, extra=(*AVERAGED, *BOTH)),
        functools.partial(oracle.classification, num_bins=6),
    ),
    "regression": (
        "draws",
        metrics.regression(noise_variance=0.0, extra=("crps_draws", "crps_fair", "pinball", "coverage"), levels=LEVELS),
        functools.partial(oracle.regression, levels=LEVELS),
    ),
}
MEMBERS = members("metrics", METRICS)
SETS = [name for name, (_, metric, _) in MEMBERS.items() if isinstance(metric, metrics.MetricSet)]


def make(kind, seed, ties=False, beyond=False, unknown=0.25):
    """Inputs and targets; all numbers are such in half precision too."""
    rng, logits = np.random.default_rng(seed), kind in ("logits", "classes")
    if logits:
        shape = (DRAWS, EXAMPLES, CLASSES) if kind == "logits" else (EXAMPLES, CLASSES)
        inputs = [make_logits(shape, seed, 2.0, 0.2 * ties)]
        if kind == "classes":
            inputs = [part - np.logaddexp.reduce(part, axis=-1, keepdims=True) for part in inputs]
        targets = rng.integers(0, CLASSES, EXAMPLES)
        targets[:2] = 0, 2  # the predictions of these examples will be NaN
        targets[2:4] += (CLASSES - targets[2:4] + np.arange(2)) * beyond
    else:
        leading = {"draws": (DRAWS,), "quantiles": (len(LEVELS),)}.get(kind, ())
        inputs = [rng.normal(size=(*leading, EXAMPLES)) for _ in range(1 + (kind in ("moments", "bounds")))]
        targets = rng.normal(size=EXAMPLES)
        if kind == "moments":
            inputs[1] = inputs[1] ** 2
        if kind == "bounds":
            inputs = [np.minimum(*inputs) - 0.5, np.maximum(*inputs)]
        targets = targets.round(0) if ties else targets
    if ties and kind != "logits":  # of model averages, rounding tells apart what is equal on paper
        inputs = [part.round(0) for part in inputs]
    targets[4:][rng.random(EXAMPLES - 4) < unknown] = -1 if logits else np.nan
    inputs = [part.astype(jnp.bfloat16).astype(np.float32) for part in inputs]
    return *inputs, targets.astype(np.int32 if logits else np.float32)


def put(kind, case, rows, value, which=slice(None), first=False):
    """The predictions of some rows replaced: all of a prediction, or its first draw or class."""
    changed = [part.copy() for part in case]
    for part in changed[:-1][which]:
        place = (rows, *[0] * (part.ndim - 1)) if first else rows
        np.moveaxis(part, example_axis(kind), 0)[place] = value
    return changed


def example_axis(kind):
    return int(kind in ("draws", "quantiles", "logits"))


@functools.cache
def cases(kind):
    plain = make(kind, 0)
    targets = plain[-1]
    unknown = np.flatnonzero(np.isnan(targets) | (targets == -1))
    order = np.random.default_rng(1).permutation(EXAMPLES)
    return {
        "plain": plain,
        "another": make(kind, 1),
        "ties": make(kind, 2, ties=True),
        "all known": make(kind, 3, unknown=0.0),
        "a class beyond the last": make(kind, 4, beyond=True),
        "a prediction that is NaN": put(kind, plain, [0, 1], np.nan, slice(1)),
        "a prediction with a NaN": put(kind, plain, [1], np.nan, slice(-1, None), first=True),
        "rows of NaN": put(kind, plain, unknown, np.nan),
        "rows of infinity": put(kind, plain, unknown, np.inf),
        "nothing known": (*plain[:-1], np.full_like(targets, -1 if targets.dtype == np.int32 else np.nan)),
        "another order": [np.take(part, order, example_axis(kind) * (part.ndim > 1)) for part in plain],
    }


def predictions(outputs):
    """Outputs ``[S, N]`` of a single dimension, which the targets lack, and others as they are."""
    return baal.Predictions(outputs[..., None] if outputs.ndim == 2 else outputs)


def function(metric):
    """Of inputs and targets, whatever a member is."""
    if not isinstance(metric, metrics.MetricSet):
        return metric
    return lambda outputs, targets: metric.compute(metric.summarise(predictions(outputs)), targets)


@functools.cache
def found(name):
    """All cases in one program, as seeds are vectorised."""
    kind, metric, _ = MEMBERS[name]
    stacked = [np.stack(parts) for parts in zip(*cases(kind).values(), strict=True)]
    values = jax.device_get(jax.jit(jax.vmap(function(metric)))(*stacked))
    return {case: jax.tree.map(lambda leaf, i=i: leaf[i], values) for i, case in enumerate(cases(kind))}


def assert_equal(found, expected, case, rtol=2e-5):
    """Part for part."""
    parts = jax.tree_util.tree_leaves_with_path(found)
    for (path, part), value in zip(parts, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(part, value, rtol, 1e-6, err_msg=f"{case} {jax.tree_util.keystr(path)}")


def test_every_public_metric_is_here():
    public = {name for name in metrics.__all__ if name[0].islower()}
    assert public - METRICS.keys() == {
        "model_average",
        "quantiles",
        "joint_log_likelihood",
        "gaussian_regression",
        "multi_label",
    }


@pytest.mark.parametrize("name", MEMBERS)
def test_equals_its_oracle(name):
    kind, _, expected = MEMBERS[name]
    for case in list(cases(kind))[:7]:
        assert_equal(found(name)[case], expected(*cases(kind)[case]), case)


@pytest.mark.parametrize("name", MEMBERS)
def test_unknown_targets_order_and_shape_do_not_count(name):
    kind, metric, _ = MEMBERS[name]
    for case in ("rows of NaN", "rows of infinity", "another order"):
        assert_equal(found(name)[case], found(name)["plain"], case, rtol=1e-6)
    for path, value in jax.tree_util.tree_leaves_with_path(found(name)["nothing known"]):
        counts = value.dtype == np.int32 or "num_examples" in str(path)
        np.testing.assert_array_equal(value, 0 if counts else np.nan, str(path))
    # One call, of a map of [4, 2] labels an example in half precision, where the others are flat and vectorised.
    *inputs, targets = cases(kind)["plain"]
    ends = [(part.shape[: example_axis(kind)], part.shape[example_axis(kind) + 1 :]) for part in inputs]
    maps = [jnp.bfloat16(part.reshape(*a, 3, 4, 2, *b)) for part, (a, b) in zip(inputs, ends, strict=True)]
    whole = jax.device_get(function(metric)(*maps, targets.reshape(3, 4, 2)))
    assert_equal(whole, found(name)["plain"], "maps", rtol=1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(whole)} <= {np.dtype(np.float32), np.dtype(np.int32)}


@pytest.mark.parametrize("name", SETS)
def test_batches_do_not_matter(name):
    # Case 52: Baal averages the means of batches, whose numbers of known targets differ.
    kind, metric, _ = MEMBERS[name]
    outputs, targets = cases(kind)["plain"]
    summarise = jax.jit(lambda part: metric.summarise(predictions(part)))
    parts = [summarise(outputs[:, rows]) for rows in (slice(0, 12), slice(12, 24))]
    summary = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(parts))
    assert_equal(jax.device_get(metric.compute(summary, targets)), found(name)["plain"], "batches", rtol=1e-6)
