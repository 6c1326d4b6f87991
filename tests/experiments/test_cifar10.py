"""The CIFAR-10 experiment at a small size: what it writes, that it resumes exactly, and what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import vgg_mcdropout_cifar10 as experiment
from jax.experimental.compilation_cache import compilation_cache

from baal_jax import checkpoint

TINY = {
    "dataset": "digits", "subset": 100, "num_test": 40, "seeds": 2, "num_initial": 40, "query_size": 5, "rounds": 2,
    "num_samples": 3, "num_steps": 3, "batch_size": 32, "predict_batch_size": 64, "optimizer": "sgd",
    "learning_rate": 0.02,
}  # fmt: skip


def tiny(out, **changes):
    return dataclasses.replace(experiment.preset("modern", "small"), **{**TINY, "out": out, **changes})


def outcome(out):
    """All that must not depend on interruptions: everything but times."""
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in checkpoint.read_lines(out / "rounds.jsonl")]
    return lines, json.loads((out / "results.json").read_text())["strategies"]


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Every call of the experiment compiles the same programs."""
    settings = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache"))}
    settings |= {f"jax_persistent_cache_min_{name}": 0 for name in ("compile_time_secs", "entry_size_bytes")}
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    experiment.main(tiny(out))
    return out


def test_it_writes_rounds_curves_calibration_classes_and_a_gallery(finished):
    for name in ("curves.png", "calibration.png", "classes.png", "gallery_bald.png"):
        assert (finished / name).stat().st_size > 5000
    lines = checkpoint.read_lines(finished / "rounds.jsonl")
    assert len(lines) == 2 * 2 * 2
    assert ["reliability" in line for line in lines] == [line["round"] == 1 for line in lines]
    first = {(line["strategy"], *line["seeds"]): line for line in lines if line["round"] == 0}
    for seed in (0, 1):  # the same first labels and keys, so the first fit is the same
        assert first["random", seed]["metrics"] == first["bald", seed]["metrics"]
        assert len(set(first["bald", seed]["picked"][0])) == 5
    results = json.loads((finished / "results.json").read_text())
    assert results["strategies"]["bald"]["num_labelled"] == [40, 45]
    assert np.shape(results["strategies"]["bald"]["metrics"]["nll"]) == (2, 2)
    assert sum(counts[1] for counts in results["labels_by_class"].values()) == 5


def test_a_run_that_stops_in_the_middle_ends_the_same(finished, tmp_path, monkeypatch):
    saves, save = [], checkpoint.Checkpointer.save

    def stopping(self, number, state):
        save(self, number, state)
        saves.append(number)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpointer, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        experiment.main(tiny(tmp_path))
    checkpoint.append_line(tmp_path / "rounds.jsonl", {"strategy": "bald"})  # a round without its checkpoint
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"strat')
    experiment.main(tiny(tmp_path))
    assert outcome(tmp_path) == outcome(finished)
    final = [np.load(sorted((out / "checkpoints").glob("step_*.npz"))[-1]) for out in (tmp_path, finished)]
    assert final[0].files == final[1].files
    assert all(final[0][name].tobytes() == final[1][name].tobytes() for name in final[0].files)  # every array


def test_a_finished_run_is_only_reported_again_and_another_one_does_not_continue_it(finished):
    before = outcome(finished)
    experiment.main(tiny(finished))
    assert outcome(finished) == before
    with pytest.raises(ValueError, match="num_steps: saved 3, now 4"):
        experiment.main(tiny(finished, num_steps=4))
    run = experiment.prepare(tiny(finished))
    other = run._replace(train=jax.tree.map(lambda leaf: leaf[::-1], run.train))  # the same images in another order
    left, right = (experiment.identity(tiny(finished), given, 1) for given in (run, other))
    assert sum(left[name] != right[name] for name in left) == 1


def test_the_original_preset_holds_the_original_numbers():
    config = dataclasses.asdict(experiment.preset("original", "vgg16"))
    expected = {"num_initial": 1000, "query_size": 100, "num_samples": 20, "num_epochs": 20, "num_steps": None}
    expected |= {"batch_size": 32, "optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.9, "batch_norm": False}
    assert config | expected == config


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    for changes, message in [
        ({"num_steps": None, "num_epochs": 2}, "--schedule onecycle"),
        ({"strategies": ("bald", "random", "bald")}, "each of them once"),
        ({"rounds": 0}, "--rounds 0"),
        ({"seeds": 0}, "--seeds 0"),
        ({"model": "vgg16"}, "at least 32 × 32"),
    ]:
        with pytest.raises(SystemExit, match=message):
            experiment.prepare(tiny(tmp_path, **changes))
    with pytest.raises(ValueError, match="num_initial=500"):
        experiment.main(tiny(tmp_path / "out", num_initial=500))
    assert not (tmp_path / "out").exists()  # before anything is written
