"""A study as an array job of submitit, whose tasks compute a part each."""

import hashlib
import inspect
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from baal_jax._util import checks, files
from baal_jax.study._program import use_all_cores, use_compilation_cache
from baal_jax.study._run import admitted, run


class _Part(NamedTuple):
    """What a task calls; when it is preempted or out of time, submitit puts the same one into the queue again."""

    asked: Path

    def __call__(self, i: int, n: int) -> None:
        use_all_cores(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)  # of this job
        use_compilation_cache()
        run(**checks.optional_import("cloudpickle", "cluster").loads(self.asked.read_bytes()), part=(i, n))

    def checkpoint(self, i: int, n: int) -> Any:
        return checks.optional_import("submitit", "cluster").helpers.DelayedSubmission(self, i, n)


def submit(
    folder: str | Path, loops: Any, train: Any, test: Any, *, executor: Any, num_parts: int, **options: Any
) -> list[Any]:
    """Submits a study as an array job, by `submitit <https://github.com/facebookincubator/submitit>`_.

    All that :func:`run` refuses is refused here, before anything is queued. What it is given travels as one file in the
    executor's folder. A task that is preempted or out of time computes the same part again, which is what is missing.

    Args:
        folder: where the study is or will be, for all machines.
        loops: as of :func:`run`, and so are the next ones; what cloudpickle can take.
        train: the pool with all its targets.
        test: where every round's fit is evaluated.
        executor: of submitit, with its parameters, such as ``AutoExecutor("jobs")``.
        num_parts: tasks of the array.
        options: of :func:`run`, all but ``part``.

    Returns:
        Jobs of submitit in order of their parts. Their results are None: :func:`results.read` has those of the study.

    Raises:
        ValueError: as of :func:`run`, or ``num_parts`` is not positive.
        ImportError: submitit is not installed.

    Example:
        >>> import submitit                                                      # doctest: +SKIP
        >>> executor = submitit.AutoExecutor("jobs")                             # doctest: +SKIP
        >>> executor.update_parameters(timeout_min=60, gpus_per_node=1)          # doctest: +SKIP
        >>> jobs = study.submit("runs/large", loops, train, test, executor=executor, num_parts=40, **options)
        ... # doctest: +SKIP
    """
    submitit, cloudpickle = (checks.optional_import(name, "cluster") for name in ("submitit", "cloudpickle"))
    checks.positive_int("num_parts", num_parts)
    given: dict[str, Any] = {"folder": Path(folder).absolute(), "loops": loops, "train": train, "test": test, **options}
    bound = inspect.signature(run).bind(**given, part=(0, 1))
    bound.apply_defaults()
    admitted(SimpleNamespace(**bound.arguments))
    content = cloudpickle.dumps(given)
    home = submitit.core.utils.JobPaths.get_first_id_independent_folder(executor.folder)
    path = files.write_bytes(home / f"study-{hashlib.sha256(content).hexdigest()[:16]}.pkl", content)
    return executor.map_array(_Part(path), range(num_parts), [num_parts] * num_parts)
