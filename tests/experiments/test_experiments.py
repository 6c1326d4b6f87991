"""The experiments run at their smallest size, and what they compute by themselves is right."""

import dataclasses
import json

import bayesian_lenet_cifar10
import cold_start_digits
import harness
import keel_benchmark
import mlp_mcdropout_digits
import numpy as np
import pytest
import rare_class
import semi_supervised_digits
import stochastic_batches
import threeclust
import upper_row

TINY = {"seeds": 2, "num_steps": 3}


def written(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_main_experiment_writes_a_table_a_picture_and_results(tmp_path, capsys):
    options = {"strategies": ("random", "softrank_margin"), "rounds": 2, "num_samples": 3, "out": tmp_path}
    curves = mlp_mcdropout_digits.main(mlp_mcdropout_digits.Config(**TINY, **options))
    assert curves["random"].metrics["accuracy"].shape == (2, 2)
    # Paired seeds: before the first query all strategies are the same run.
    np.testing.assert_array_equal(*[curve.metrics["nll"][:, 0] for curve in curves.values()])
    assert "softrank_margin" in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert written(tmp_path)["strategies"]["random"]["num_labelled"] == [20, 30]
    with pytest.raises(SystemExit, match="power_blad"):
        harness.acquisition("power_blad", 1.0)


def test_cold_starts_are_compared(tmp_path):
    options = {"strategies": ("random", "k_center"), "num_labels": (4,), "model": "linear", "out": tmp_path}
    curves = cold_start_digits.main(cold_start_digits.Config(**TINY, **options))
    assert curves["k_center"].metrics["accuracy"].shape == (2, 1)
    assert (curves["random"].metrics["classes"] <= 4).all()
    assert (tmp_path / "cold_start.png").stat().st_size > 10_000


def test_stochastic_batches_are_compared_with_an_inverse_temperature_of_one(tmp_path, capsys):
    sizes = {"query_sizes": (5,), "budget": 25, "pool": 60, "num_samples": 3}
    stochastic_batches.main(stochastic_batches.Config(**TINY, **sizes, out=tmp_path))
    assert "| auto |" in capsys.readouterr().out


def test_an_oracle_is_a_row_of_a_study_and_rare_classes_are_counted(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {"train_inputs": rng.normal(size=(60, 3)), "test_inputs": rng.normal(size=(20, 3))}
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    arrays |= {"train_targets": np.arange(60) % 3, "test_targets": np.arange(20) % 3}
    np.savez(tmp_path / "mine.npz", **arrays)
    given = {"data": f"{tmp_path}/mine.npz", "rounds": 2, "num_initial": 6, "query_size": 3, "num_samples": 3}
    asked = upper_row.Config(strategies=("random", "margin"), num_batches=2, seeds=2, out=tmp_path, **given)
    upper_row.main(asked)
    assert "| oracle |" in capsys.readouterr().out
    rows = rare_class.main(rare_class.Config(strategies=("random",), seeds=1, share=0.1, **given))
    assert rows[0][0] == "random"
    assert "4 of 44 in the pool are of the rare class; 12 labels" in capsys.readouterr().out


def test_semi_supervised_fits_are_paired_with_supervised_ones(tmp_path, capsys):
    config = semi_supervised_digits.Config(
        methods=("supervised", "fix_match"), labels=(10, 20), model="mlp", seeds=2, num_steps=2, num_samples=2,
        unlabelled_batch_size=8, out=tmp_path,
    )  # fmt: skip
    curves = semi_supervised_digits.main(config)
    # Nothing is certain after two steps, so FixMatch is the supervised fit.
    accuracies = [curve.metrics["accuracy"] for curve in curves.values()]
    assert accuracies[0].shape == (2, 2)
    np.testing.assert_allclose(*accuracies, atol=1 / 360 + 1e-6)
    assert "points ± s.e. of the paired difference" in capsys.readouterr().out


def test_the_lenet_experiment_writes_what_it_reports(tmp_path):
    config = bayesian_lenet_cifar10.Config(
        methods=("local_reparameterization",), dataset="digits", subset=60, num_test=30, epochs=1, batch_size=30,
        num_samples=3, initial_std=0.1, out=tmp_path,
    )  # fmt: skip
    results = bayesian_lenet_cifar10.main(config)
    assert written(tmp_path)["methods"] == results
    assert results["local_reparameterization"]["epistemic"][0] > 1e-4
    with pytest.raises(SystemExit, match="--subset 0"):
        bayesian_lenet_cifar10.load(dataclasses.replace(config, subset=0))


def test_evidence_is_written_into_its_page_by_the_experiments(tmp_path, monkeypatch, capsys):
    """Between its own lines, whatever stands there; a page without them is refused."""
    page = tmp_path / "evidence.md"
    names = ("keel_benchmark", "threeclust", "repeated_mnist")
    marks = [f"{name}{end}" for name in names for end in ("", ": unhelpful")]
    page.write_text("".join(f"<!-- begin {mark} -->\nold\n<!-- end {mark} -->\n\n" for mark in marks), encoding="utf-8")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 3))
    monkeypatch.setattr(harness, "keel", lambda name: (inputs, (inputs[:, 0] > 0).astype(np.int32)))
    small = {"seeds": 3, "num_samples": 3, "evidence": page}
    monkeypatch.setattr("sys.argv", ["experiments/keel_benchmark.py", "--evidence", str(page)])
    few = {"sets": ("sonar",), "strategies": ("random", "margin"), "oracle_seeds": 3, "out": tmp_path / "keel"}
    areas = keel_benchmark.main(keel_benchmark.Config(**small, **few))
    assert set(areas["sonar"]) == {
        f"{head}, {name}" for head in ("logistic", "GP", "SVC") for name in ("random", "margin")
    } | {"logistic, oracle"}
    # Paired: of the same first labels and models, the same first accuracy; and the area is theirs.
    infos = type("Infos", (), {"num_labelled": [[20, 21, 22]], "metrics": {"accuracy": [[0.5, 0.7, 0.9]]}})
    np.testing.assert_allclose(keel_benchmark.area(infos), (0.6 + 0.8) / 3)
    assert keel_benchmark.known(keel_benchmark.Config(**small, **few))[0].keys() == {"sonar"}
    with pytest.raises(SystemExit, match="is of other settings"):
        keel_benchmark.known(keel_benchmark.Config(**{**small, "seeds": 4}, **few))
    monkeypatch.setattr("sys.argv", ["experiments/threeclust.py"])
    monkeypatch.setattr(threeclust, "ROUNDS", {"ThreeClust": 3, "DivergingSin": 2})
    threeclust.main(threeclust.Config(**small, strategies=("random", "margin"), out=tmp_path / "three"))
    text = page.read_text(encoding="utf-8")
    assert text.count("old") == 2
    for part in ("## KEEL", "`python experiments/keel_benchmark.py`", "| sonar |", "## ThreeClust", "| oracle"):
        assert part in text
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match="needs a line <!-- begin threeclust -->"):
        harness.evidence(threeclust.Config(evidence=page), 1.0, "title", [])
    assert "farther than .02" in capsys.readouterr().out
