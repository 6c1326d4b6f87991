"""A whole study: strategies × seeds as compiled programs, all of it on disk and resumed by cell.

"Does this acquisition help?" takes many seeds of strategies that share first labels and random numbers. It is a call::

    picks = {"random": selection.random(), "bald": selection.top_k(heuristics.bald)}
    loops = study.strategies(posterior, picks, query_size=10)
    results = study.run("runs/digits", loops, train, test, num_seeds=20, num_rounds=15, num_initial=20, key=key)
    print(statistics.markdown(statistics.summary(results)))
    report.write("runs/digits")

Killed anywhere, the same call finishes what is missing. What is in the folder: :mod:`baal_jax.study.results`.
"""

from baal_jax.study import plots, report, results, statistics
from baal_jax.study._folder import environment
from baal_jax.study._program import use_all_cores, use_compilation_cache
from baal_jax.study._run import About, run, strategies, submit

__all__ = [
    "About", "environment", "plots", "report", "results", "run", "statistics", "strategies", "submit",
    "use_all_cores", "use_compilation_cache",
]  # fmt: skip
