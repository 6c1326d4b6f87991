"""Flags that people debug with: jax_enable_x64 and jax_debug_nans. And what Windows does not have.

Types are those of traced programs, which costs no compilation. That no fit, no prediction and no score is NaN is seen
where these are computed anyway: test_posteriors, test_selections and test_stopping run under jax_debug_nans.
"""

import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import calibration, heuristics, losses, metrics, pool, posteriors, selection, stopping
from baal_jax.data import View
from baal_jax.posteriors import kernels
from baal_jax.training import semi_supervised
from tests.fixtures import random_network, trainer

KEY = jax.random.key(0)
INPUTS = np.random.default_rng(0).normal(size=(14, 4))
CLASSES = (np.arange(14) % 3).astype(np.int32)
EVERYTHING = metrics.classification(
    top_k=(2,), diagnostics=True, extra=("precision", "f1", "auroc", "average_precision", "ece_per_class")
)
DRAWN = [np.random.default_rng(1).normal(size=shape) for shape in [(5, 12, 3), (12, 4), (5, 2, 3)]]
AVAILABLE = np.arange(12) % 5 != 3


class Wide(nn.Module):
    """Parameters in float64."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Dense(8, param_dtype=jnp.float64)(x))
        return nn.Dense(3, param_dtype=jnp.float64)(nn.Dropout(0.5, deterministic=not train)(x))


class Narrow(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def built(name, model, **options):
    if name == "gaussian_process":
        return posteriors.gaussian_process(kernels.dense(1), num_classes=3, num_features=16)
    if name == "logistic_regression":
        return posteriors.logistic_regression(3)
    settings = {"deep_ensemble": {"num_members": 2}, "mc_dropconnect": {"rate": 0.3}, "swag": {"rank": 2}}
    return posteriors.REGISTRY[name](model, trainer(**options), **settings.get(name, {}))


def kinds(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.number)}


# jax_enable_x64

MEMBERS = (*posteriors.REGISTRY, "gaussian_process", "logistic_regression")
OPTIONS = {  # of training, each traced with MC dropout
    "average": lambda data: {"average_from": 0.5},
    "epochs": lambda data: {"num_steps": None, "num_epochs": 2},
    "pi_model": lambda data: {"unlabelled": semi_supervised.pi_model(ramp_up=2)},
    "validation": lambda data: {"validation": data, "warm_start": True},
}
SCALINGS = [f"calibrated_{name}" for name in calibration.REGISTRY]


@pytest.mark.parametrize("name", [*MEMBERS, *OPTIONS, *SCALINGS])
def test_float64_data_and_parameters_are_learnt_from_and_kept(name):
    with jax.enable_x64(True):
        data = baal.Dataset(jnp.asarray(INPUTS), jnp.asarray(CLASSES))
        model, options = baal.from_linen(Wide()), OPTIONS[name](data) if name in OPTIONS else {}
        posterior = built(name if name in MEMBERS else "mc_dropout", model, **options)
        if name in SCALINGS:
            scaling = calibration.REGISTRY[name.removeprefix("calibrated_")]()
            posterior = calibration.calibrated(posterior, scaling)
        loop = baal.active_loop(posterior, selection.top_k(), query_size=3, num_samples=4, batch_size=8)
        test = data if name in ("gaussian_process", "mc_dropout") else None
        chosen = loop._replace(metrics=EVERYTHING)
        state, infos = jax.eval_shape(lambda: baal.run(chosen, KEY, data, test, num_initial=4, num_rounds=2))
    assert (infos.indices.dtype, infos.scores.dtype) == (jnp.int32, jnp.float32)
    assert kinds(infos) == {"int32", "float32"}
    assert "int64" not in kinds(state)
    assert name == "gaussian_process" or "float64" in kinds(state.posterior)


def traced(name, dtype):
    """A selection as text, and the types of what it gives."""
    acquisition = selection.REGISTRY[name](**({"num_configurations": 9} if name == "batch_bald" else {}))

    def picks(key, *given):
        summary = None if acquisition.summarise is None else acquisition.summarise(baal.Predictions(*given))
        return acquisition.select(key, summary, jnp.asarray(AVAILABLE), 4, jnp.asarray(~AVAILABLE))

    program, given = jax.make_jaxpr(picks, return_shape=True)(KEY, *(part.astype(dtype) for part in DRAWN))
    return str(program), given


@pytest.mark.parametrize("name", selection.REGISTRY)
def test_selections_give_int32_and_read_float32_as_without_the_flag(name):
    """No array of the program is wider than the data, random numbers included: so the picks are the same."""
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            program, given = traced(name, dtype)
            assert (given.indices.dtype, given.scores.dtype) == (jnp.int32, jnp.float32)
            assert dtype == np.float64 or not re.search(r"f64\[\d", program)


@pytest.mark.parametrize("name", heuristics.REGISTRY)
def test_heuristics_keep_the_type_of_the_logits(name):
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            logits = jax.ShapeDtypeStruct((5, 12, 3), dtype)
            assert jax.eval_shape(heuristics.REGISTRY[name], logits).dtype == dtype


@pytest.mark.parametrize("kernel", [kernels.dense(2), kernels.convolutional(1, 2)])
def test_features_of_a_kernel_are_float32_whatever_its_parameters(kernel):
    rows = INPUTS.reshape(14, 2, 2, 1)
    params = kernel.init(KEY, rows, 8)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        features = kernel.features(wide, rows)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, kernel.features(params, rows), rtol=1e-5, atol=1e-6)


def test_picks_are_the_same_with_the_flag_on_float32_data():
    data = baal.Dataset(INPUTS.astype(np.float32), CLASSES)
    posterior = built("gaussian_process", None)

    def picks():
        loop = baal.active_loop(posterior, selection.power(), query_size=3, num_samples=4)
        return np.asarray(baal.run(loop, KEY, data, None, num_initial=4, num_rounds=2)[1].indices)

    expected = picks()
    with jax.enable_x64(True):
        np.testing.assert_array_equal(picks(), expected)


# jax_debug_nans


@pytest.fixture
def debug_nans():
    with jax.debug_nans(True):
        yield


def dataset(rows=slice(None), missing=None):
    targets = CLASSES if missing is None else np.where(missing == CLASSES, -1, CLASSES)
    return baal.Dataset(jnp.asarray(INPUTS[rows], jnp.float32), jnp.asarray(targets[rows]))


def test_what_is_nan_by_definition_is_no_error(debug_nans):
    """An acquisition without a score, a pool that runs out, a class that is missing, a run that has stopped."""
    loop = baal.active_loop(random_network(), selection.random(), query_size=3, num_samples=4, metrics=EVERYTHING)
    train, test = dataset(slice(8)), dataset(missing=2)
    keys, rules = jax.random.split(KEY, 2), (stopping.plateau("auroc", 2), stopping.labelling_budget(7))
    options = {"num_initial": 4, "num_rounds": 3}
    _, infos = baal.run(loop, KEY, train, test, stop=stopping.any_of(*rules), **options)
    assert infos.stopped.tolist() == [False, True, True]
    assert np.isnan(np.asarray(infos.metrics["accuracy_per_class"])[:, 2]).all()
    assert np.isnan(infos.mean_score).all()
    _, infos = jax.vmap(lambda key: baal.run(loop, key, train, test, **options))(keys)
    assert (np.asarray(infos.indices)[:, 1] == -1).sum(axis=1).tolist() == [2, 2]
    state = loop.init(KEY, train, num_initial=4)
    on_host = train._replace(inputs=View(np.asarray(train.inputs)))
    for data in (train, on_host):
        _, info = loop.step(state, data)
        assert np.isnan(info.mean_score)
    assert np.isnan(np.asarray(loop.evaluate(state, test)["accuracy_per_class"])[2])


def test_targets_that_are_still_unknown_are_no_error(debug_nans):
    state = pool.label(pool.init(5, targets=np.full(5, np.nan, np.float32)), [1, 2], [1.0, 2.0])
    state = pool.annotate(pool.unlabel(pool.exclude(state, [3]), [1]), [0], [1.0])
    np.testing.assert_array_equal(state.targets, np.array([1, 1, 2, np.nan, np.nan], np.float32))
    scores = jnp.zeros(5)
    picked = selection.precomputed(scores).select(KEY, None, pool.available(state), 4)
    assert np.isnan(picked.scores).tolist() == [False] * 3 + [True]


def test_a_fit_of_nan_is_an_error(debug_nans):
    def loss(outputs, targets):
        return losses.cross_entropy(outputs, targets) / 0.0

    posterior = built("mc_dropout", baal.from_linen(Narrow()), optimizer=optax.sgd(1.0), loss=loss, num_steps=1)
    loop = baal.active_loop(posterior, selection.random(), query_size=2, num_samples=2)
    state = loop.init(KEY, dataset(), num_initial=4)
    for call in (
        lambda: loop.step(state, dataset()),
        lambda: jax.vmap(lambda key: baal.run(loop, key, dataset(), None, num_initial=4, num_rounds=1))(KEY[None]),
    ):
        with pytest.raises(FloatingPointError):
            call()


# Windows

WITHOUT_POSIX = """
import importlib, os, pkgutil, sys, warnings
from pathlib import Path
import flax.linen, matplotlib, numpy as np, optax, jax
for name in ("fcntl", "grp", "posix", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("O_DIRECTORY", "O_NOFOLLOW", "fork", "geteuid", "getuid", "sched_getaffinity", "sync", "uname"):
    delattr(os, name)
opened = os.open
def refuse_folders(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *arguments, **options)
os.open = refuse_folders
warnings.filterwarnings("error", category=EncodingWarning, module="baal_jax")
import baal_jax
for module in pkgutil.walk_packages(baal_jax.__path__, "baal_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from tests.contracts.test_files import WRITERS
from tests.fixtures import same
for name in ("checkpoint", "journal cut to its checkpoint", "study", "labelling project", "query", "answers"):
    folder = Path(sys.argv[1], name)
    folder.mkdir()
    WRITERS[name].old(folder)
    WRITERS[name].new(folder)
    same(WRITERS[name].read(folder), WRITERS[name].value)
    for path in folder.rglob("*"):
        assert not set(path.name) & set('<>:"|?*\\\\'), path
        assert path.suffix not in (".json", ".jsonl", ".csv") or b"\\r" not in path.read_bytes(), path
"""


def test_the_package_is_imported_and_writes_files_without_what_windows_lacks(tmp_path):
    command = [sys.executable, "-X", "warn_default_encoding", "-c", WITHOUT_POSIX, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
