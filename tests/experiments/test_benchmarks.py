"""Benchmarks that measure whatever device there is run at their smallest size."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments" / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:  # names as general as theirs are not for other tests
        if "benchmarks" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_exponents_of_growth(tmp_path, capsys):
    import growth

    # Known ones: the fit is over the upper part alone.
    sizes = np.array([1.0, 10, 100, 1000, 10_000])
    curve = growth.Curve("", "N", sizes, np.maximum(sizes**2, 1e4), 1e6 * sizes)
    np.testing.assert_allclose(curve.exponents(), (2.0, 1.0), rtol=1e-6)
    config = growth.Config(("max_diag",), points=3, share=0.002, repeats=1, picture=str(tmp_path / "a.png"))
    curves = growth.main(config)
    assert {(curve.name, curve.axis) for curve in curves} >= {("max_diag", "N"), ("max_diag", "D")}
    assert capsys.readouterr().out.count("\n") == len(curves) + 1
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_every_operation_of_growth_can_be_traced():
    import growth

    shape = {"N": 40, "S": 3, "C": 3, "Q": 4, "D": 5}
    for name in growth.THEORY:
        function, arguments = growth.operation(name, shape)
        jax.eval_shape(function, *arguments)
    assert {name for name, _ in (*growth.MEMORY, *growth.UP_TO)} | growth.FIXED.keys() <= growth.THEORY.keys()


def test_a_device_is_measured_in_one_command(tmp_path):
    import device
    import device_parts

    config = device.Config("small", ("vgg", "batch_bald", "badge", "epig", "top_k"), repeats=1, out=tmp_path / "a.json")
    measured = device.main(config)
    assert json.loads(config.out.read_text()) == measured
    for name, part in measured["parts"].items():
        assert min(part["compile_s"], part["run_s"], part["flops"], part["bytes"], part["share"]) > 0, name
        assert part.keys() >= {"peer", "ratio"} or name == "batch_bald", name
    for name in ("digits", "cifar10"):  # the same function, which takes longer to compile
        work = device_parts.PARTS[name](device_parts.SIZES["small"])
        infos = jax.eval_shape(work.function, *work.arguments)
        assert infos.metrics["accuracy"].shape[-1] == 2
        for function, arguments, count in work.pieces:
            assert count > 1
            jax.eval_shape(function, *arguments)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux")
def test_big_pools_from_disk(tmp_path, capsys, monkeypatch):
    import big_pool

    monkeypatch.setattr(big_pool, "in_process", lambda _, config: big_pool.measure(config))
    for kinds, name in ((big_pool.RANKINGS, "power"), (big_pool.SETS, "badge")):
        [monkeypatch.delitem(kinds, other) for other in {*kinds} - {name}]
    sizes = {"rows": 6000, "set_rows": 3000, "dims": 4, "classes": 3, "query_size": 5, "batch_size": 64}
    config = big_pool.Config(str(tmp_path / "big"), **sizes, num_samples=3, rounds=3, neighbours=20)
    measured = big_pool.main(config)
    assert {name for name, part in measured.items() if part.get("MB", 1) >= 0} == {*measured}
    assert capsys.readouterr().out.count("picks from disk are those in memory") == 2
    assert 0 < measured["seals"]["scored"] < measured["full"]["scored"] / 2
    assert not (tmp_path / "big").exists()
