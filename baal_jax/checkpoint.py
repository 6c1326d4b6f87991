"""Checkpoints for exact resume: a run that is killed and continued ends as if it had never been killed.

A folder of checkpoints belongs to one configuration and to one process at a time. A checkpoint is an ``.npz`` file that
gets its name when it is complete: whatever moment a process dies, the newest one is whole.
"""

import dataclasses
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from baal_jax._util import checks, files, meshes

__all__ = ["Checkpointer", "append_line", "checkpointer", "keep_lines", "read_lines"]

append_line, keep_lines, read_lines = files.append_line, files.keep_lines, files.read_lines
_NAME = r"step_([0-9]{8}|[1-9][0-9]{8,})"  # numbers of more digits come after all others


class Checkpointer(NamedTuple):
    """The checkpoints of a run in a ``directory``, of which the newest ``keep`` stay; made by :func:`checkpointer`.

    They carry ``run``, a digest of the configuration, so that those of another are refused.
    """

    directory: Path
    keep: int
    run: str

    @property
    def latest(self) -> int | None:
        """Number of the newest complete checkpoint, None before the first."""
        return max(self._paths(), default=None)

    def save(self, number: int, state: Any) -> None:
        """Writes a checkpoint and returns when it is durable.

        Args:
            number: of the checkpoint, larger than those before.
            state: pytree of arrays, typed keys, real numbers and None; all else is refused with a ValueError.
        """
        if checks.positive_int("number", number, least=0) <= max(self._paths(), default=-1):
            raise ValueError(f"number={number} does not come after checkpoint {self.latest}: count upwards")
        arrays = files.packed(state)  # of all processes
        with meshes.first_process() as writes:
            if writes:
                files.write_arrays(self.directory / f"step_{number:08d}.npz", arrays, self.run)
                for path in list(self._paths().values())[: -self.keep]:
                    path.unlink()

    def restore(self, like: Any, *, number: int | None = None) -> Any:
        """Reads a checkpoint.

        Args:
            like: structure, shapes and dtypes to expect: ``jax.eval_shape(make_state)`` or a state, placed alike.
            number: which checkpoint; by default the newest.

        Returns:
            A pytree like ``like``, equal bit for bit to what was saved.

        Raises:
            ValueError: there is no such checkpoint, it is damaged, or it does not fit ``like``.
        """
        paths, number = self._paths(), self.latest if number is None else number
        if number not in paths:
            raise ValueError(f"number={number} is not among the checkpoints {list(paths)} of {self.directory}")
        saved = files.read_arrays(paths[number], "delete it to go on from the checkpoint before it", self.run)
        try:
            return files.unpacked(like, saved)
        except ValueError as error:
            raise ValueError(f"checkpoint {paths[number]} does not fit: {error}") from error

    def _paths(self) -> dict[int, Path]:
        there = {path.stem: path for path in self.directory.glob("step_*.npz") if re.fullmatch(_NAME, path.stem)}
        return dict(sorted((int(name[5:]), path) for name, path in there.items()))


@contextmanager
def checkpointer(directory: str | Path, config: Any, *, keep: int = 2) -> Iterator[Checkpointer]:
    """The checkpoints of a run, new or to be continued, for this process alone.

    Args:
        directory: where the checkpoints lie; made if it does not exist.
        config: mapping or dataclass, nested as you like, that a continued run must share.
        keep: how many of the newest checkpoints to keep.

    Yields:
        :class:`Checkpointer`.

    Raises:
        ValueError: the folder belongs to another configuration or format, with every difference named, is damaged, or
            another process (or another call in this one) works in it.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> with checkpoint.checkpointer(folder, {"rate": 0.1}) as saved:
        ...     saved.save(1, {"key": jax.random.key(0), "weights": jnp.arange(3)})
        >>> with checkpoint.checkpointer(folder, {"rate": 0.1}) as saved:
        ...     state = saved.restore({"key": jax.random.key(1), "weights": jnp.zeros(3, int)})
        >>> saved.latest, state["weights"].tolist()
        (1, [0, 1, 2])
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    checks.text("config", config := files.plain(config), lines=True)
    checkpoints = Checkpointer(Path(directory), checks.positive_int("keep", keep), files.digest(config))
    checkpoints.directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locked:
        with meshes.first_process() as writes:
            if writes:
                locked.enter_context(files.lock(checkpoints.directory))
                for left_over in checkpoints.directory.glob(".step_*"):
                    left_over.unlink()
                _require_same(checkpoints.directory, config)
        yield checkpoints


def _require_same(folder: Path, config: Any) -> None:
    """Refuses another configuration than that of the folder; another jax is only a warning."""
    path, versions = folder / "config.json", {name: version(name) for name in ("jax", "jaxlib")}
    record = {"config": config, "versions": versions}
    if not path.exists():
        if any(folder.glob("step_*")):
            raise ValueError(f"{folder} holds checkpoints but no config.json: choose another folder")
        files.write_json(path, record)
    saved, now = _flat(files.read_json(path, "restore it from a backup, or choose another folder")), _flat(record)
    names = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    different = [f"\n  {name}: saved {saved.get(name, 'nothing')}, now {now.get(name, 'nothing')}" for name in names]
    if any(not name.startswith("versions.") for name in names):
        cure = "Go back to that configuration, choose another folder, or delete this one"
        raise ValueError(f"{path} belongs to another configuration:{''.join(different)}\n{cure}")
    if different:
        why = "results may differ in the last bits from those of a run that was never interrupted"
        warnings.warn(f"{folder} was written by another version of jax, {why}:{''.join(different)}", stacklevel=4)


def _flat(config: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(config, is_leaf=lambda node: not (node and isinstance(node, dict)))
    return {jax.tree_util.keystr(path, simple=True, separator="."): json.dumps(value) for path, value in leaves}
