"""The study command: what its options become, its data and its networks, and what it leaves in the folder."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import __main__ as command_line
from baal_jax import data, features, heuristics, losses, metrics, posteriors, selection, stopping, study
from baal_jax._cli import _assemble, _study
from baal_jax.study import results
from tests.fixtures import NnxNet, close, clouds, noted, same_key
from tests.study.files import make_results

QUICK = "--seeds 2 --rounds 2 --num-initial 4 --query-size 2 --num-steps 3 --num-samples 2 --batch-size 4".split()
HERE = "tests.cli.test_study"


def linen_factory(num_outputs):
    return nn.Sequential([nn.Dense(4), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(num_outputs)])


def nnx_factory(num_outputs):
    return lambda rngs: NnxNet(rngs, num_outputs)


def wrong_factory(num_outputs):
    return num_outputs


def saved(path, **more):
    train, test = clouds()
    arrays = {"train_inputs": train.inputs, "train_targets": train.targets}
    arrays |= {"test_inputs": test.inputs, "test_targets": test.targets, **more}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


def test_a_study_from_a_file_with_a_network_of_ones_own(tmp_path, capsys):
    source, home = saved(tmp_path / "mine.npz", class_names=np.array(["a", "b", "c"])), tmp_path / "home"
    command = ["study", str(home), "--data", source, "--model", f"{HERE}:linen_factory", *QUICK]
    assert command_line.main([*command, "--strategies", "random"]) == 0
    shown = capsys.readouterr().out
    assert "| random |" in shown
    assert shown.endswith(f"\n{home / 'results.csv'}\n{home / 'report.html'}\n")
    found = results.read(home)
    assert found.runs["random"].indices.shape == (2, 2, 2)
    assert found.runs["random"].diagnostics["reliability_accuracy"].shape == (2, 2, 15)
    assert found.description["class_names"] == ["a", "b", "c"]
    assert "Active learning on mine" in (home / "report.html").read_text()
    assert command_line.main([*command, "--strategies", "random", "--rate", "0.3"]) == 1
    assert "holds a study with config=" in capsys.readouterr().err


@pytest.fixture
def called(monkeypatch):
    """What the parts of a study are called with; nothing is run."""
    calls = {}

    monkeypatch.setattr(study, "strategies", noted(calls, "strategies", "loops"))
    monkeypatch.setattr(study, "run", noted(calls, "run", make_results(seeds=2, rounds=2)))
    monkeypatch.setattr(_assemble, "trainer", noted(calls, "trainer", "a trainer"))
    monkeypatch.setattr(_assemble.optax, "adam", lambda rate: f"Adam of {rate}")
    for name in ("swag", "laplace", "mc_dropout"):
        monkeypatch.setitem(posteriors.REGISTRY, name, lambda model, fit, name=name: (name, model, fit))
    monkeypatch.setattr(selection, "by_name", lambda name: f"picks by {name}")
    monkeypatch.setattr(features, "gradient", lambda model: ("gradient", model))
    return calls


def test_options_become_the_parts_of_a_study(called, tmp_path):
    table = tmp_path / "table.txt"
    np.savetxt(table, np.random.default_rng(0).normal(size=(60, 4)))
    command = f"study {tmp_path / 'home'} --data {table} --num-test 20 --strategies random lcmd "
    command += "--posteriors swag laplace --features gradient --seeds 7 --rounds 3 --num-initial 4 --query-size 1 2 "
    command += "--num-samples 6 --max-sample 30 --num-steps 11 --batch-size 8 --learning-rate 0.5 --budget 9 "
    command += f"--metric mae --target 0.25 --chunk 2 --seed 5 --rate 0.125 --model {HERE}:nnx_factory"
    assert command_line.main(command.split()) == 0
    by_name, picks, options = called["strategies"]
    assert [(name, *found[::2]) for name, found in by_name.items()] == [
        (name, name, "a trainer") for name in ("swag", "laplace")
    ]
    assert picks == {"random": "picks by random", "lcmd": "picks by lcmd"}
    expected = {"query_size": (1, 2), "num_samples": 6, "max_sample": 30}
    expected |= {"features": ("gradient", by_name["swag"][1]), "metrics": metrics.regression()}
    assert options == expected
    assert called["trainer"] == ("Adam of 0.5", losses.squared_error, {"num_steps": 11, "batch_size": 8})
    folder, loops, train, test, options = called["run"]
    assert [folder, loops] == [tmp_path / "home", "loops"]
    close((train, test), data.uci(table, num_test=20, seed=5)[:2])
    same_key(options.pop("key"), jax.random.key(5))
    about = options.pop("about")
    sizes = {"num_seeds": 7, "num_rounds": 3, "num_initial": 4, "chunk": 2, "progress": True}
    assert options == {**sizes, "stop": stopping.labelling_budget(9)}
    assert about[:5] == ("Active learning on table", None, "mae", 0.25, None)
    # What may grow, what changes no number, and what the folder has under other names, is not compared.
    assert about.config == {
        **{"data": str(table), "num_test": 20, "model": f"{HERE}:nnx_factory", "rate": 0.125, "features": "gradient"},
        **{"query_size": (1, 2), "num_samples": 6, "max_sample": 30, "num_steps": 11, "batch_size": 8},
        **{"learning_rate": 0.5, "budget": 9},
    }


def test_classes_are_reported_with_diagnostics_and_one_posterior_gives_no_name(called, tmp_path):
    command = ["study", str(tmp_path / "home"), "--data", saved(tmp_path / "mine.npz"), *QUICK]
    assert command_line.main(command) == 0
    posterior, picks, options = called["strategies"]
    assert [posterior[0], list(picks), options["query_size"]] == ["mc_dropout", ["random", "bald"], (2,)]
    assert options["metrics"] is metrics.classification(diagnostics=True)
    assert called["trainer"][1] is losses.cross_entropy
    assert called["run"][-1]["stop"] is None


WRONG = [
    (["--strategies", "bld"], "name='bld' is no strategy: use one of"),
    (["--posteriors", "mc_drop"], "posteriors=mc_drop must be names of bayes_by_backprop,"),
    (["--posteriors"], "posteriors= must be names of"),
    (["--model", "resnet"], "model='resnet' is unknown: use mlp or cnn, or package.module:factory"),
    (["--model", "no.such:thing"], "cannot be imported"),
    (["--model", f"{HERE}:thing"], "cannot be imported"),
    (["--model", f"{HERE}:wrong_factory"], "made int: return a linen module"),
    (["--model", "cnn"], "model='cnn' needs images [H, W, C], but an example has shape (4,)"),
    (["--data", "cifar10", "--data-dir", "nowhere"], "cifar10 was not found. Tried:"),
    (["--data", "nowhere.npz"], "data='nowhere.npz' is neither digits, cifar10 nor a file"),
]


def test_what_cannot_be_done_is_said_in_a_line(tmp_path, capsys):
    source = saved(tmp_path / "mine.npz")
    for more, message in WRONG:
        assert command_line.main(["study", str(tmp_path / "home"), "--data", source, *QUICK, *more]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("study: ")
        assert message in shown
        assert not (tmp_path / "home").exists()


def test_data_by_name(tmp_path, monkeypatch):
    def problem(name="a.npz", model="mlp", data_dir=None, **arrays):
        source = saved(tmp_path / name, **arrays) if name.endswith("npz") else name
        return _assemble.problem(_study.Study(Path(), data=source, model=model, data_dir=data_dir))

    found = problem()
    close((found.train, found.test), clouds())
    assert found[2:] == (3, None, None)
    assert problem(class_names=np.array(list("abcde")))[2:4] == (5, list("abcde"))
    assert problem(train_targets=np.full(40, 7)).num_classes == 8
    ones = {"train_targets": np.zeros(40, int), "test_targets": np.zeros(30, int)}
    assert problem(**ones).num_classes == 2
    shape = {"train_inputs": np.zeros((40, 2, 2, 3)), "test_inputs": np.zeros((30, 2, 2, 3))}
    found = problem(**{name: value / 2 for name, value in ones.items()}, **shape)
    assert [found.num_classes, found.images.shape] == [None, (40, 2, 2, 3)]
    with pytest.raises(ValueError, match=r"lacks test_targets: it has train_inputs, train_targets, test_inputs"):
        problem(test_targets=None)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        problem(test_targets=np.array([print], object))
    for model, shape in (("mlp", (64,)), ("cnn", (8, 8, 1))):
        found = problem("digits", model)
        assert [found.train.inputs.shape[1:], found.num_classes] == [shape, 10]
        assert found.class_names == [str(i) for i in range(10)]
        np.testing.assert_array_equal(found.images.reshape(len(found.images), *shape), found.train.inputs)
    monkeypatch.setattr(data, "cifar10", lambda folder: data.digits() if folder == Path("there") else None)
    found = problem("cifar10", data_dir=Path("there"))
    assert found[2:4] == (10, list(data.CIFAR10_CLASSES))
    assert found.images is found.train.inputs


@pytest.mark.parametrize("name", ["mlp", "cnn", f"{HERE}:linen_factory", f"{HERE}:nnx_factory"])
def test_networks_by_name(key, name):
    shape = (8, 8, 1) if name == "cnn" else (4,)
    # Of all dropped out nothing but the bias is left, which is zero at first.
    model = _assemble.network(name, 3, shape, 1.0 if ":" not in name else 0.5)
    inputs = jnp.arange(2 * np.prod(shape), dtype=jnp.uint8 if name == "cnn" else jnp.float32).reshape(2, *shape)

    @jax.jit
    def outputs(key):
        variables = model.init(key, inputs)
        return jnp.stack([model.apply(variables, inputs, one) for one in jax.random.split(key)])

    first, second = outputs(key)
    assert first.shape == (2, 3)
    assert np.array_equal(first, np.zeros((2, 3))) == np.array_equal(first, second) == (":" not in name)
    # Bytes are scaled, and numbers are not.
    np.testing.assert_allclose(_assemble._scaled(np.array([0, 255], np.uint8)), [-1, 1])
    assert _assemble._scaled(np.array([0.5], np.float32)) == 0.5


def test_acquisitions_by_name(monkeypatch):
    monkeypatch.setattr(selection, "top_k", lambda score: ("top_k", score))
    for how in ("power", "softrank"):
        monkeypatch.setitem(selection.REGISTRY, how, lambda score, coldness, how=how: (how, score, coldness))
    monkeypatch.setitem(selection.REGISTRY, "badge", lambda: "badge")
    assert selection.by_name("badge") == "badge"
    for name in ("bald", "top_k_bald"):
        assert selection.by_name(name) == ("top_k", heuristics.bald)
    assert selection.by_name("power_bald") == ("power", heuristics.bald, 1.0)
    assert selection.by_name("softrank_entropy", coldness=2.0) == ("softrank", heuristics.entropy, 2.0)
    for name in ("top_k_top", "power_", "topk_bald", "grid", "top_k", ""):
        with pytest.raises(ValueError, match=f"name='{name}' is no strategy"):
            selection.by_name(name)
