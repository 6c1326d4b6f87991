"""Files where the system is another one: no ``fcntl`` and no folders to open, as on Windows."""

import os
import sys
import types

import pytest

from baal_jax._util import files
from baal_jax.study import _folder, results


@pytest.fixture
def elsewhere(monkeypatch):
    """Windows as far as files see it; ``held`` are the bytes that are locked."""
    held = set()

    def locking(descriptor, mode, count):
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        if place in held:
            raise PermissionError(13, "Permission denied")
        held.add(place)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.delattr(os, "O_DIRECTORY")
    return held


def test_a_folder_is_locked_and_files_are_replaced(elsewhere, tmp_path):
    with files.lock(tmp_path):
        assert [place for _, place in elsewhere] == [1 << 20]
        assert (tmp_path / "lock").read_text() == str(os.getpid())
        with pytest.raises(ValueError, match=rf"another process: wait for it .process {os.getpid()}"):
            files.lock(tmp_path).__enter__()
    files.write_text(tmp_path / "a.txt", "one")
    files.write_text(tmp_path / "a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "lock"]


def test_claims_expire_by_time_alone_where_a_look_at_a_process_would_kill_it(elsewhere, tmp_path, monkeypatch):
    monkeypatch.setattr(_folder, "os", types.SimpleNamespace(**{**vars(os), "name": "nt", "kill": None}))
    claim = tmp_path / "random-0000-0000"
    assert _folder.take(claim)
    assert not _folder.take(claim)
    _folder.give_back(claim)
    assert not claim.exists()


def test_names_that_differ_in_case_alone_are_files_of_their_own(tmp_path):
    """As on disks of Windows and macOS, where BALD and bald are one file."""
    slugs = [results.slug(name).lower() for name in ("bald", "BALD", "Bald", "a/b", "a\\b", "a:b")]
    assert len({*slugs}) == len(slugs)
    assert not any(set(slug) & set('<>:"/\\|?*') for slug in slugs)
