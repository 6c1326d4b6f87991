"""The study command: its data, its networks, and what it leaves in the folder."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from baal_jax import Predictions, heuristics, selection
from baal_jax import __main__ as command_line
from baal_jax._cli import _assemble, _study
from baal_jax.study import results
from tests.fixtures import clouds as data

QUICK = ["--seeds", "2", "--rounds", "2", "--num-initial", "4", "--query-size", "2", "--num-steps", "3"]
QUICK += ["--num-samples", "2", "--batch-size", "4"]


def linen_factory(num_outputs):
    return nn.Sequential([nn.Dense(4), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(num_outputs)])


class Small(nnx.Module):
    def __init__(self, num_outputs, rngs):
        self.dropout, self.dense = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, num_outputs, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(x))


def nnx_factory(num_outputs):
    return lambda rngs: Small(num_outputs, rngs)


def wrong_factory(num_outputs):
    return num_outputs


def saved(path, **more):
    train, test = data()
    arrays = {"train_inputs": train.inputs, "train_targets": train.targets}
    arrays |= {"test_inputs": test.inputs, "test_targets": test.targets, **more}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


def test_a_study_from_a_file_with_a_network_of_ones_own(tmp_path, capsys):
    source = saved(tmp_path / "mine.npz", class_names=np.array(["a", "b", "c"]))
    command = [
        "study",
        str(tmp_path / "home"),
        "--data",
        source,
        "--model",
        "tests.test_commands:linen_factory",
        *QUICK,
    ]
    assert command_line.main([*command, "--strategies", "random", "margin"]) == 0
    shown = capsys.readouterr().out
    assert "| margin |" in shown
    assert "results.csv" in shown
    found = results.read(tmp_path / "home")
    assert list(found.runs) == ["random", "margin"]
    assert found.runs["margin"].indices.shape == (2, 2, 2)
    assert found.runs["random"].diagnostics["reliability_accuracy"].shape == (2, 2, 15)
    assert found.description["class_names"] == ["a", "b", "c"]
    assert found.description["config"]["model"] == "tests.test_commands:linen_factory"
    assert "<html" in (tmp_path / "home" / "report.html").read_text()
    assert command_line.main([*command, "--strategies", "random", "--rate", "0.3"]) == 1
    assert "holds a study with config=" in capsys.readouterr().err


def test_a_study_of_numbers(tmp_path, capsys):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(60, 4))
    np.savetxt(tmp_path / "table.txt", table)
    command = ["study", str(tmp_path / "home"), "--data", str(tmp_path / "table.txt"), "--num-test", "20", *QUICK]
    command += ["--strategies", "random", "lcmd", "--features", "gradient"]
    assert command_line.main([*command, "--model", "tests.test_commands:linen_factory", "--budget", "6"]) == 0
    found = results.read(tmp_path / "home")
    assert found.description["metric"] == "rmse"
    assert set(found.runs["lcmd"].metrics) >= {"rmse", "mae", "nll", "crps"}
    assert "rmse: lower is better" in capsys.readouterr().out


WRONG = {
    "strategy": (["--strategies", "bld"], "name='bld' is no strategy: use one of"),
    "posterior": (["--posteriors", "mc_drop"], "posteriors=mc_drop must be names of"),
    "model": (["--model", "resnet"], "model='resnet' is unknown: use mlp or cnn, or package.module:factory"),
    "module": (["--model", "no.such:thing"], "cannot be imported"),
    "attribute": (["--model", "tests.test_commands:thing"], "cannot be imported"),
    "what it makes": (["--model", "tests.test_commands:wrong_factory"], "made int: return a linen module"),
    "images": (["--model", "cnn"], r"model='cnn' needs images [H, W, C], but an example has shape (4,)"),
    "cifar10": (["--data", "cifar10", "--data-dir", "nowhere"], "cifar10 was not found. Tried:"),
    "data": (["--data", "nowhere.npz"], "data='nowhere.npz' is neither digits, cifar10 nor a file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path, capsys, case):
    more, message = WRONG[case]
    source = saved(tmp_path / "mine.npz")
    assert command_line.main(["study", str(tmp_path / "home"), "--data", source, *QUICK, *more]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "home").exists()


def test_missing_arrays_are_named(tmp_path):
    path = saved(tmp_path / "part.npz", test_targets=None)
    with pytest.raises(ValueError, match=r"lacks test_targets: it has train_inputs"):
        _assemble.problem(_study.Study(tmp_path, data=path))


@pytest.mark.parametrize("name", ["mlp", "cnn", "tests.test_commands:linen_factory", "tests.test_commands:nnx_factory"])
def test_networks_by_name(key, name):
    shape = (8, 8, 1) if name == "cnn" else (4,)
    model = _assemble.network(name, 3, shape, 0.5)
    inputs = jnp.ones((5, *shape), jnp.uint8 if name == "cnn" else jnp.float32)
    variables = model.init(key, inputs)
    outputs = model.apply(variables, inputs, key)
    assert outputs.shape == (5, 3)
    assert not np.array_equal(outputs, model.apply(variables, inputs, jax.random.key(1)))


@pytest.mark.parametrize(
    "name", ["bald", "top_k_bald", "power_bald", "softrank_entropy", "badge", "random", "top_k_top"]
)
def test_acquisitions_by_name(name):
    if name == "top_k_top":
        with pytest.raises(ValueError, match="name='top_k_top' is no strategy"):
            selection.by_name(name)
        return
    logits = jax.random.normal(jax.random.key(0), (4, 9, 3))
    found = selection.by_name(name, coldness=2.0)
    expected = {
        "bald": selection.top_k(heuristics.bald),
        "top_k_bald": selection.top_k(heuristics.bald),
        "power_bald": selection.power(heuristics.bald, 2.0),
        "softrank_entropy": selection.softrank(heuristics.entropy, 2.0),
    }.get(name)
    if expected is None:
        assert found.summarise is selection.REGISTRY[name]().summarise or name == "badge"
        return
    scores = expected.summarise(Predictions(logits))
    np.testing.assert_array_equal(found.summarise(Predictions(logits)), scores)
    key, available, nothing = jax.random.key(1), jnp.ones(9, bool), jnp.zeros(9, bool)
    np.testing.assert_array_equal(
        found.select(key, scores, available, 3, nothing).indices,
        expected.select(key, scores, available, 3, nothing).indices,
    )


@pytest.mark.parametrize("name", ["top_k_top", "power_", "topk_bald", "grid", "top_k", ""])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match=f"name='{name}' is no strategy"):
        selection.by_name(name)
