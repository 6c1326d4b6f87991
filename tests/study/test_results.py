"""Cells, table and pictures of a study, without running one."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax._util import files
from baal_jax.study import _folder, results
from tests.fixtures import same
from tests.study.files import make_results, write_study


def test_what_is_written_is_read_whatever_the_names_are(tmp_path):
    names = ("bald", "Bald", "bald-0", "a/τ", "a_τ", ".bald", "bald" * 60, "bald" * 60 + "x")  # they look alike
    study = make_results(names, seeds=3, rounds=2, pictures=4, classes=2)
    slugs = {results.slug(name).lower() for name in (*names, *map(results.slug, names))}
    assert [len(slugs), max(map(len, slugs)) < 100] == [2 * len(names) - 1, True]  # "bald" is its own
    assert not [name for name in slugs if name.startswith(".")]
    assert [results.slug(name) for name in ("top_k.2", "bald")] == ["top_k.2", "bald"]
    found = results.read(str(write_study(tmp_path, study)))
    assert list(found.runs) == list(names)
    same(found._replace(description=None, devices=None), study._replace(description=None))
    assert found.devices == {"cpu (cpu)": 3 * len(names)}
    assert found.description == json.loads(json.dumps(study.description))
    files.write_json(tmp_path / "study.json", {**found.description, "format": 1})
    with pytest.raises(ValueError, match=r"study.json has format 1, but this version reads 3: use the one that wrote"):
        results.read(tmp_path)
    with pytest.raises(ValueError, match=r"study.json is missing: run a study there first"):
        results.read(tmp_path / "nowhere")


def test_cells_are_put_together_by_seed_and_a_seed_that_is_there_twice_is_taken_once():
    runs = make_results(("random",), rounds=2).runs["random"]
    parts = [jax.tree.map(lambda leaf, at=at: leaf[at], runs) for at in ([3, 4], [0, 3], [1, 2])]
    parts[1].scores[1] += 1  # of another device
    merged = results.merge(results.Cell(part, "none", f"device {i}") for i, part in enumerate(parts))
    same(merged, runs)
    assert list(merged.metrics) == sorted(runs.metrics)
    for cell, message in (
        (
            results.Cell(parts[1], "other", "cpu"),
            "the cell of seed 0 is of another program or kind of value than that of seed 3",
        ),
        (results.Cell(parts[1]._replace(metrics={}), "none", "cpu"), "of another program or kind of value"),
    ):
        with pytest.raises(ValueError, match=message):
            results.merge([results.Cell(parts[0], "none", "cpu"), cell])


def begun(path, asked):
    place = _folder.Folder(path, asked)
    place.begin({})
    return place


def test_a_cell_that_does_not_belong_to_its_study_is_refused_by_name(tmp_path):
    runs = make_results(("random",), seeds=2, rounds=2).runs["random"]
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[[i]], runs) for i in range(2))
    asked = {"strategies": ["random"], "baseline": None, "seeds": [0, 1], "num_rounds": 2, "num_pool": 100}
    place = begun(tmp_path, asked)
    place.add("random", results.Cell(first, "none", "cpu"))
    for strategy, other, message in (
        ("random", second._replace(indices=second.indices + 100), "00001.npz.*ids are int32 .*outside of the pool"),
        ("random", second._replace(scores=second.scores[:, :1]), "00001.npz.*not all of it has 1 seeds and 2 rounds"),
        ("bald", second, "bald-00001-00001.npz.*does not know the strategy 'bald'"),
        ("random", second._replace(metrics={}), r"random-\*.npz.*seed 1 is of another program or kind of"),
    ):
        path = results.write_cell(tmp_path, place.description, strategy, results.Cell(other, "none", "cpu"))
        with pytest.raises(ValueError, match=message):
            results.read(tmp_path)
        path.unlink()


def moved(old, new, runs, is_replaced):
    place = begun(old, {"strategies": ["random"], "baseline": None, "seeds": [0, 1]})
    place.add("random", results.Cell(jax.tree.map(lambda leaf: leaf[:1], runs), "none", "cpu"))
    old.rename(new)
    if is_replaced:
        (old / "cells").mkdir(parents=True)
    place.add("random", results.Cell(jax.tree.map(lambda leaf: leaf[1:], runs), "none", "cpu"))


def test_a_folder_that_is_moved_is_whole_and_nothing_is_written_where_it_was(tmp_path):
    runs, old, new = make_results(("random",), seeds=2, rounds=2).runs["random"], tmp_path / "old", tmp_path / "new"
    for is_replaced in (False, True):
        shutil.rmtree(new, ignore_errors=True)
        with pytest.raises((ValueError, OSError), match=re.escape(str(old))):
            moved(old, new, runs, is_replaced)
        assert results.read(new).runs["random"].seeds.tolist() == [0]
        assert not [path for path in old.rglob("*") if path.is_file()]


def test_a_cell_has_the_targets_of_what_was_queried():
    runs = make_results(("random",), seeds=3, rounds=2, classes=None).runs["random"]
    infos = runs._replace(metrics={"nll": np.ones((3, 2)), "bins": np.ones((3, 2, 4))}, seeds=None)
    infos.indices[1, 1, 2:] = -1
    for targets, unknown in ((np.arange(100) * 3, -1), (np.arange(100) / 2, np.nan)):
        cell = _folder.cell(np.array([5, 6]), infos.initial, infos, targets, "program")
        assert [cell.program, cell.device, cell.runs.seeds.dtype] == ["program", "cpu (cpu)", np.int32]
        expected = np.where(infos.indices >= 0, targets[infos.indices], unknown)[:2]
        np.testing.assert_array_equal(cell.runs.diagnostics["query_targets"], expected)
        assert [list(cell.runs.metrics), sorted(cell.runs.diagnostics)] == [["nll"], ["bins", "query_targets"]]
        assert {len(leaf) for leaf in jax.tree.leaves(cell.runs)} == {2}  # the third is padding
    several = _folder.cell(np.array([5, 6]), infos.initial, infos, np.ones((100, 2)), "program")
    assert list(several.runs.diagnostics) == ["bins"]


def folder(path, names=("bald", "random"), **asked):
    return begun(path, {"strategies": list(names), "baseline": None, "seeds": [0, 1], "num_rounds": 2, **asked})


def test_a_description_grows_and_keeps_its_baseline_and_environment(tmp_path):
    assert folder(tmp_path, names=("bald", "badge")).description["baseline"] == "bald"
    old = results.read_description(tmp_path)
    old["environment"]["python"] = "1.2"
    files.write_json(tmp_path / "study.json", old)
    written = (tmp_path / "study.json").stat().st_mtime_ns
    assert folder(tmp_path, names=("badge",), seeds=[0]).description["seeds"] == [0, 1]
    assert (tmp_path / "study.json").stat().st_mtime_ns == written  # it is written where it has changed
    found = folder(tmp_path, names=("random", "badge"), seeds=[0, 1, 2], metric="nll").description
    expected = {"strategies": ["bald", "badge", "random"], "baseline": "bald", "seeds": [0, 1, 2], "metric": "nll"}
    assert found.items() >= expected.items()
    assert found["environment"]["python"].startswith("1.")
    assert found == results.read_description(tmp_path)
    assert folder(tmp_path, baseline="badge").description["baseline"] == "badge"
    assert folder(tmp_path / "new").description["baseline"] == "random"


def test_pictures_are_those_of_the_first_seeds_in_the_order_of_rounds(tmp_path):
    study = make_results(("random", "bald"), seeds=2, rounds=2, classes=2)
    study.runs["bald"].indices[0, 1] = -1
    place, path = folder(tmp_path), tmp_path / "pictures.npz"
    order = [*study.runs["random"].initial[0]]
    order += [index for r in range(2) for runs in study.runs.values() for index in runs.indices[0, r] if index >= 0]
    rows = np.arange(100 * 4, dtype=np.int64).reshape(100, 2, 2, 1)
    for most in (12, 1000):
        _folder.save_pictures(place, study, rows, np.arange(100) * 2, most=most)
        ids = np.sort([*dict.fromkeys(order)][:most])
        same(
            results.read_pictures(path, place.description),
            results.Pictures(ids, np.round(rows[ids] / 399 * 255), 2 * ids),
        )
    before = path.stat().st_mtime_ns
    _folder.save_pictures(place, study, rows, np.arange(100) * 2)
    assert path.stat().st_mtime_ns == before
    _folder.save_pictures(place, study, rows.astype(np.uint8), np.arange(100))
    np.testing.assert_array_equal(results.read_pictures(path, place.description).images, rows.astype(np.uint8)[ids])


def test_every_bit_of_the_data_is_in_its_digest():
    a, b = np.arange(4.0), jnp.ones(2, jnp.bfloat16)
    trees = [{"a": other, "b": b} for other in (a, a.astype(np.float32), a.reshape(2, 2), a[::-1])]
    trees += [{"a": a, "c": b}, {"a": a, "b": jnp.full(2, 1.0078125, jnp.bfloat16)}]
    assert len({_folder.digest(tree) for tree in trees}) == 6
    assert _folder.digest(trees[0]) == _folder.digest({"a": np.stack([a] * 2, axis=1)[:, 0], "b": b})
    assert _folder.describe_pool([0, 2, -1, 2]) == {"num_pool": 4, "class_counts": [1, 0, 2]}
    assert _folder.describe_pool([0.5]) == {"num_pool": 1}
