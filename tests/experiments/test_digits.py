"""The experiments run at a small size, and their networks compute what they should."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import study
from baal_jax.study import plots, statistics

import harness
import mlp_mcdropout_digits as digits


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_digits_experiment_writes_a_table_a_picture_and_results(model, tmp_path, capsys):
    config = digits.Config(
        strategies=("random", "bald", "softrank_margin"),
        model=model,
        seeds=2,
        rounds=2,
        num_samples=3,
        num_steps=4,
        out=tmp_path,
    )
    curves = digits.main(config)
    assert curves["bald"].metrics["accuracy"].shape == (2, 2)
    np.testing.assert_array_equal(curves["bald"].num_labelled, [20, 30])
    # Paired seeds: before the first query all strategies are the same run.
    for metric in ("accuracy", "nll"):
        first = [curve.metrics[metric][:, 0] for curve in curves.values()]
        np.testing.assert_array_equal(first[0], first[1])
        np.testing.assert_array_equal(first[0], first[2])
    assert "softrank_margin" in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["config"]["num_steps"] == 4
    assert results["environment"]["jax"] == jax.__version__
    assert results["strategies"]["random"]["num_labelled"] == [20, 30]


def test_an_unknown_strategy_is_refused_by_name():
    with pytest.raises(SystemExit, match="power_blad"):
        harness.acquisition("power_blad", 1.0)


def test_digits_are_split_evenly_and_without_overlap():
    train, test = baal.data.digits(num_test=360)
    assert train.inputs.shape == (1437, 64)
    assert test.inputs.shape == (360, 64)
    assert train.inputs.dtype == np.float32
    assert train.targets.dtype == np.int32
    assert train.inputs.min() == 0
    assert train.inputs.max() == 1
    counts = np.bincount(test.targets)
    assert counts.max() - counts.min() <= 3
    rows = {row.tobytes() for row in train.inputs}
    assert sum(row.tobytes() in rows for row in test.inputs) == 0
    other = baal.data.digits(seed=1)[1]
    assert (other.inputs != test.inputs).any()
    assert baal.data.digits(image=True)[0].inputs.shape == (1437, 8, 8, 1)
    with pytest.raises(ValueError, match="num_test=1797"):
        baal.data.digits(num_test=1797)


def test_standard_error():
    values = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 10.0]])
    np.testing.assert_allclose(statistics.standard_error(values), values.std(axis=0, ddof=1) / np.sqrt(3))
    assert np.isnan(statistics.standard_error(values[:1])).all()


def test_table_says_when_a_target_is_not_reached():
    curves = {"flat": plots.Curves(np.array([20, 30]), {"accuracy": np.full((2, 2), 0.5), "nll": np.ones((2, 2))})}
    table = plots.learning_curve_table(curves)
    assert "flat: not reached" in table
    assert "0.500 ± 0.000  1.000" in table


def test_json_is_whole_or_not_there(tmp_path):
    path = study.results.write_json(
        tmp_path / "a" / "b.json", {"x": np.arange(3), "y": float("nan"), "z": (jnp.ones(1), path_of())}
    )
    assert json.loads(path.read_text()) == {"x": [0, 1, 2], "y": None, "z": [[1.0], "c"]}
    with pytest.raises(TypeError):
        study.results.write_json(path, {"x": object()})
    assert json.loads(path.read_text())["x"] == [0, 1, 2]  # the old file is untouched
    assert list(path.parent.iterdir()) == [path]  # and nothing is left over


def path_of():
    return Path("c")
