"""Several processes on one folder: claims, parts, kills, jobs of JAX and of submitit; the outcome is that of one."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import losses, posteriors, selection, study
from baal_jax._util import files
from baal_jax.study import _folder, _program, _run, report, results
from tests.fixtures import clouds, loops, same
from tests.study.files import make_results

SIZE = {"num_seeds": 6, "num_rounds": 2, "num_initial": 4, "chunk": 1}
CELLS = {f"{name}-{seed:05d}-{seed:05d}" for name in ("random", "bald") for seed in range(6)}


def run(folder, **options):
    return study.run(folder, loops(), *clouds(), key=jax.random.key(0), **{**SIZE, **options})


def programs(strategies, rounds, data):
    """In the place of what is compiled."""

    def of_one(loop, chunk):
        shift = sum(other is loop for other in strategies[1:])

        def call(seeds):
            numbers = np.asarray(seeds, np.int32)[:, None] * 2 + np.arange(2, dtype=np.int32) + shift
            picked, values = numbers[..., None] + np.arange(3, dtype=np.int32), np.float32(np.sin(numbers))
            infos = baal.typing.StepInfo(
                numbers, 4 + numbers, picked, np.float32(picked) / 7, 0 * numbers + 3, values, 0 * numbers
            )
            infos = infos._replace(metrics={"accuracy": values**2}, stopped=numbers < 0, num_failed_fits=0 * numbers)
            return numbers[:, :1] + np.arange(4, dtype=np.int32), infos

        return _program.Program(call, None)

    return of_one


FAKE = {"programs": programs, "fingerprint": lambda *given: "a program"}


def outcome(folder):
    """All that must not depend on who computed it, and when."""
    for cell in folder.glob("cells/*.npz"):
        os.utime(cell, (0, 0))  # the report says when
    report.write(folder)
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Of one process."""
    run(folder := tmp_path_factory.mktemp("compiled"))
    return outcome(folder)


@pytest.fixture
def peace(tmp_path_factory, monkeypatch):
    """Of one process, and nothing is compiled from here on."""
    for name, value in FAKE.items():
        monkeypatch.setattr(_program, name, value)
    run(folder := tmp_path_factory.mktemp("peace"))
    return outcome(folder)


# ``python -m tests.study.test_processes FOLDER [RANK PORT]`` is one of several; it prints the cells that it computed.


def main(folder, rank=None, port=None):
    if rank is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
    else:
        vars(_program).update(FAKE)
    add = _folder.Folder.add

    def slowly(place, strategy, cell):
        time.sleep(0.1)
        add(place, strategy, cell)
        print(results.path_of(place.path, strategy, cell.runs.seeds).stem, flush=True)

    _folder.Folder.add = slowly
    found = run(folder)
    print("seeds", *(seed for runs in found.runs.values() for seed in runs.seeds))


def started(folder, *more):
    command = [sys.executable, "-m", "tests.study.test_processes", str(folder), *map(str, more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def computed(process):
    """Names of cells, by a process that found all of the study at the end."""
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    *cells, seeds = printed.splitlines()
    assert seeds == "seeds " + " ".join(map(str, 2 * [*range(6)]))
    return cells


def test_processes_share_what_is_missing_and_a_killed_one_is_replaced(peace, tmp_path):
    first, second = started(tmp_path), started(tmp_path)
    lost = first.stdout.readline().strip()
    first.kill()
    lost = {lost, *first.communicate()[0].split()}
    third = started(tmp_path)
    second, third = computed(second), computed(third)
    assert {*second, *third} >= CELLS - lost
    assert len(second) + len(third) <= 12  # nothing twice
    assert outcome(tmp_path) == peace


def test_processes_of_a_job_compute_their_cells_and_all_have_all(compiled, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cells = [computed(process) for process in [started(tmp_path, rank, port) for rank in range(2)]]
    assert [{int(cell[-1]) % 2 for cell in some} for some in cells] == [{0}, {1}]
    assert {*cells[0], *cells[1]} == CELLS
    assert outcome(tmp_path) == compiled


def test_parts_wait_for_nobody_and_the_last_one_writes_the_table(peace, tmp_path):
    (tmp_path / "claims").mkdir()
    for claim in CELLS:
        (tmp_path / "claims" / claim).write_text("elsewhere 1")
    found = run(tmp_path, part=(0, 5))
    assert {name: runs.seeds.tolist() for name, runs in found.runs.items()} == {"random": [0, 5], "bald": [4]}
    assert [found.pictures, found.devices] == [None, {"cpu (cpu)": 3}]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    same(run(tmp_path, part=(0, 5)).runs, found.runs)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert results.progress(str(tmp_path)) == (3, 12)
    assert not (tmp_path / "results.csv").exists()
    for i in (2, 4, 1, 3):
        found = run(tmp_path, part=(i, 5))
    same(found.runs, results.read(tmp_path).runs)
    assert outcome(tmp_path) == peace


def test_what_others_have_claimed_is_waited_for_until_they_end_or_expire(peace, tmp_path, monkeypatch):
    monkeypatch.setattr(_folder, "EXPIRES", 3.0)
    for name in (name for name in peace if name.parent.name == "cells" or name.name == "study.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(peace[name])
    (tmp_path / "claims").mkdir()
    late, lost = tmp_path / "cells" / "bald-00002-00002.npz", tmp_path / "cells" / "random-00001-00001.npz"
    content = late.read_bytes()
    for path in (late, lost):
        path.unlink()
        (tmp_path / "claims" / path.stem).write_text("elsewhere 1")
    threading.Timer(1, lambda: late.write_bytes(content)).start()
    (tmp_path / "claims" / lost.stem).touch()
    begun, shown = time.monotonic(), io.StringIO()
    with contextlib.redirect_stderr(shown):
        assert len(run(tmp_path, progress=True).runs["random"].seeds) == 6
    assert "4 of 4 rounds" in shown.getvalue()  # two rounds are another's
    assert time.monotonic() - begun > 3
    assert outcome(tmp_path) == peace


def test_claims_are_stale_where_their_process_is_gone(tmp_path, monkeypatch):
    claim, here = tmp_path / "bald-0-1", socket.gethostname()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for holder, age, is_stale in (
        ("elsewhere 1", 0, False),
        ("elsewhere 1", 299, False),
        ("elsewhere 1", 301, True),
        (f"{here} {os.getppid()}", 0, False),
        (f"{here} 1", 0, False),
        (f"{here} {gone.pid}", 0, True),
        (f"{here} {os.getpid()}", 0, True),  # of an earlier life
        (f"{here} ", 0, False),
        ("", 0, False),
        ("", 301, True),
    ):
        claim.write_text(holder)
        os.utime(claim, (time.time() - age,) * 2)
        assert [_folder.is_stale(claim), _folder.take(claim)] == [is_stale, is_stale]
        assert not _folder.take(claim)  # whoever holds it now
        assert _folder.take(claim, by_force=True)
        assert claim.read_text() == f"{here} {os.getpid()}"
        _folder.give_back(claim)
        assert not claim.exists()
    assert not _folder.is_stale(claim)
    with monkeypatch.context() as patched:  # another clock of the file system's
        patched.setattr(_folder, "_clock", lambda folder: -time.monotonic() + time.time() + 1000)
        claim.write_text("elsewhere 1")
        assert _folder.is_stale(claim)
    with monkeypatch.context() as patched:  # no process is looked at where that would end it
        patched.setattr(os, "name", "nt")
        patched.setattr(os, "kill", None)
        claim.write_text(f"{here} {gone.pid}")
        assert not _folder.is_stale(claim)
    claim.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(_folder, "EXPIRES", 0.5)
        _folder._heart.__wrapped__()
        assert _folder.take(claim)
        other = tmp_path / "other"
        other.write_text("elsewhere 1")
        time.sleep(0.8)
        assert [_folder.is_stale(claim), _folder.is_stale(other)] == [False, True]
    _folder.give_back(claim)


def test_only_what_no_process_holds_is_swept(tmp_path):
    place = _folder.Folder(tmp_path, {"strategies": ["a"], "baseline": None, "seeds": [0]})
    names = (".results.csv.abc", ".study.json.b", ".pictures.npz.c", "cells/.a-0-0.npz.abcdef", "cells/.a-1-1.npz.a")
    held = tmp_path / "claims" / "a-1-1"
    for path in (tmp_path / name for name in names):
        path.write_bytes(b"half")
    os.utime(tmp_path / names[0], (0, 0))
    held.write_text("elsewhere 1")
    (tmp_path / "claims" / "a-2-2").write_text(f"{socket.gethostname()} {os.getpid()}")
    place._sweep()
    assert [(tmp_path / name).exists() for name in names] == [False, True, True, True, True]
    for name in ("study.json", "results.csv", "pictures.npz", "cells/a-0-0.npz", "cells/a-2-2.npz"):
        (tmp_path / name).touch()
    place._sweep(at_end=True)
    assert [(tmp_path / name).exists() for name in names] == [False, False, False, False, True]
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["a-1-1"]


def test_what_else_is_at_work_is_told(tmp_path, monkeypatch):
    """A description is that of all callers, and a program is compared with one that has no cell yet."""
    asked = {"strategies": ["a"], "baseline": None, "seeds": [0], "chunk": 3}
    first = _folder.Folder(tmp_path, asked)
    second = _folder.Folder(tmp_path, {**asked, "strategies": ["b"], "seeds": [0, 1], "chunk": 4})
    first.begin({"a": "1"}, "cpu")
    second.begin({"b": "2"}, "gpu")
    first._describe()
    expected = {"strategies": ["a", "b"], "seeds": [0, 1], "chunk": 3, "programs": {"a": "1", "b": "2"}}
    assert first.description.items() >= (expected | {"devices": ["cpu", "gpu"]}).items()
    with pytest.raises(ValueError, match=r"has cells of gpu: compute there, or leave out same_device, as this .* cpu"):
        _folder.Folder(tmp_path, asked).begin({"a": "1"}, "cpu", same_device=True)
    _folder.Folder(tmp_path, asked).begin({"a": "1"}, None, same_device=True)  # nothing is missing
    _folder.Folder(tmp_path, asked).begin({"a": "3"})  # nothing was made by the other
    same(_folder.Folder(tmp_path, asked).description["programs"], {"a": "3", "b": "2"})
    claim = tmp_path / "claims" / "a-00000-00002"
    assert _folder.take(claim)
    with pytest.raises(ValueError, match=r"loops\['a'\] is another program than the one that made its 1 cells"):
        _folder.Folder(tmp_path, asked).begin({"a": "4"})
    _folder.give_back(claim)
    # A description that was lost between two processes is that of the cells.
    runs = make_results(("a",), seeds=1, rounds=2).runs["a"]
    first.add("a", results.Cell(runs, "3", "cpu"))
    old = results.read_description(tmp_path)
    del old["programs"]["a"]
    files.write_json(tmp_path / "study.json", old)
    with pytest.raises(ValueError, match=r"loops\['a'\] is another program"):
        _folder.Folder(tmp_path, asked).begin({"a": "4"})
    _folder.Folder(tmp_path, asked).begin({"a": "3"})
    assert results.read_description(tmp_path)["programs"] == {"a": "3", "b": "2"}


def test_kinds_of_device_are_told_and_seeds_of_two_cells_are_read_once(peace, tmp_path, monkeypatch):
    run(tmp_path, num_seeds=1, chunk=4)
    monkeypatch.setattr(_folder, "device", lambda: "TPU v9 (tpu)")
    with pytest.raises(ValueError, match="has cells of cpu"):
        run(tmp_path, num_seeds=2, same_device=True)
    with monkeypatch.context() as patched:  # as if it had begun at the same time
        patched.setattr(results, "missing", lambda folder, cells: cells)
        found = run(tmp_path, num_seeds=2)
    assert sorted(path.name[-9:-4] for path in (tmp_path / "cells").iterdir()) == ["00000", "00000", "00001", "00001"]
    assert found.devices == {"TPU v9 (tpu)": 2, "cpu (cpu)": 2}
    assert found.runs["bald"].seeds.tolist() == [0, 1]
    shown = report.write(tmp_path).read_text("utf-8")
    for kind in found.devices:
        assert f'<tr><th scope="row">{kind}</th><td>2</td></tr>' in shown
    run(tmp_path, num_seeds=2, same_device=True)  # nothing is missing


def test_the_part_of_a_task_of_slurm(monkeypatch):
    assert _run._parts(None) == ((0, 1), (0, 1))
    for task, expected in (
        ({"ID": "7", "COUNT": "4", "MIN": "3", "STEP": "2"}, (2, 4)),
        ({"ID": "3", "COUNT": "4"}, (3, 4)),
    ):
        with monkeypatch.context() as patched:
            for name, value in task.items():
                patched.setenv(f"SLURM_ARRAY_TASK_{name}", value)
            assert _run._parts(None) == (expected, expected)
            assert _run._parts((0, 1)) == ((0, 1), (0, 1))
            patched.setattr(jax, "process_count", lambda: 3)
            patched.setattr(jax, "process_index", lambda: 2)
            (i, n), shared = _run._parts(None)
            assert shared == expected
            assert {*range(24)[i::n]} < {*range(24)[shared[0] :: shared[1]]}
            assert n == 3 * shared[1]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    with pytest.raises(ValueError, match=r"SLURM_ARRAY_TASK_ID=4 is none of 4 in a row: pass part=\(i, n\)"):
        _run._parts(None)
    for part, message in (((-1, 2), r"part\[0\]=-1"), ((0, 0), r"part\[1\]=0"), ((2, 2), r"count from \(0, 2\) to")):
        with pytest.raises(ValueError, match=message):
            _run._parts(part)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2)).reshape(len(x), -1)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def test_a_program_is_the_same_on_every_device(monkeypatch):
    rng = np.random.default_rng(0)
    train = baal.Dataset(rng.normal(size=(20, 4, 4, 1)).astype(np.float32), rng.integers(0, 3, 20).astype(np.int32))
    data = _program.Data(jax.random.key(0), *jax.tree.map(jax.numpy.asarray, (train, train)), None, None)

    trainer = baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=2, batch_size=4)

    def of(posterior, num_samples=3):
        loop = baal.active_loop(posterior, selection.random(), query_size=2, num_samples=num_samples)
        return _program.fingerprint(loop, _program.Rounds(2, 4, None), data)

    here, there = (posteriors.mc_dropout(baal.from_linen(Net()), trainer) for _ in range(2))
    expected = of(here)
    with monkeypatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: "gpu")
        with jax.default_device(jax.devices("cpu")[3]):
            assert of(here) == expected  # though jax has kept what it traced
        patched.setattr(_program.windows, "as_on_cpu", mock.MagicMock(value=False))
        assert of(there) != expected  # with the layers of accelerators
    assert [of(here), of(here, 4) == expected] == [expected, False]


def test_a_study_is_an_array_job(compiled, tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(signal_delay_s=1)
    options = {"executor": executor, "key": jax.random.key(0), **SIZE}
    folder = tmp_path / "study"
    for wrong, error in (({"num_parts": 0}, ValueError), ({"num_rounds": 0}, ValueError), ({"part": 1}, TypeError)):
        with pytest.raises(error, match=next(iter(wrong))):
            study.submit(folder, loops(), *clouds(), **{**options, "num_parts": 2, **wrong})
    assert [*(tmp_path / "jobs").iterdir()] == []
    jobs = study.submit(folder, loops(), *clouds(), num_parts=2, **options)
    while not [*folder.glob("cells/*")]:
        time.sleep(0.05)
    jobs[0]._interrupt()  # as a preemption would: the same part again
    assert [job.result() for job in jobs] == [None, None]
    assert outcome(folder) == compiled


if __name__ == "__main__":
    main(*sys.argv[1:])
