"""Where nothing differs, at most 5 % of studies claim a difference; ``python -m`` this file prints the whole table."""

import itertools

import numpy as np
import pytest

from baal_jax.study import statistics


def claims(k, n, studies, better=0.0):
    """Shares of simulated studies in which the ranking, and a comparison with the first, claim a difference."""
    rng, found = np.random.default_rng([k, n]), np.zeros(2)
    for _ in range(studies):
        values = rng.normal(size=(k, n)) + rng.normal(size=n)  # a lucky start is lucky for all
        values[-1] += better
        areas = {f"s{j}": row for j, row in enumerate(values)}
        verdicts = statistics.compare_all(areas, "s0", higher_is_better=True, num_resamples=99).values()
        found += len(statistics.rank(areas).groups) > 1, any(one.verdict in ("better", "worse") for one in verdicts)
    return found / studies


@pytest.mark.parametrize(("k", "n"), [(2, 3), (2, 6), (3, 2), (3, 3), (4, 2)])
def test_of_all_that_chance_can_give_at_most_alpha_is_claimed(k, n):
    orders = [*itertools.permutations(range(k))]
    studies = [np.array(study) for study in itertools.product(orders, repeat=n)]
    for alpha in (0.05, 0.3):
        found = [statistics.rank(dict(enumerate(study.T)), confidence=1 - alpha) for study in studies]
        assert np.mean([len(one.groups) > 1 for one in found]) <= alpha + 1e-9
        p_values = np.array([one.p_value for one in found])
        for p_value in {alpha, p_values[0], p_values[7]}:
            assert np.mean(p_values <= p_value) <= p_value + 1e-9
        farther = np.array([np.ptp([*one.mean_ranks.values()]) for one in found]) - found[0].critical_difference
        assert np.mean(farther > 1e-9) <= alpha + 1e-9 < np.mean(farther > -1e-9)
    # It could not be sharper: of all studies, as large a share as a p-value says is as clear.
    assert np.mean(p_values <= p_values[7]) == pytest.approx(p_values[7])


@pytest.mark.parametrize(("k", "n"), [(2, 5), (2, 20), (4, 8), (6, 4), (6, 20)])
def test_differences_are_claimed_where_they_are_and_not_elsewhere(k, n):
    assert (claims(k, n, 200) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)).all()
    if n == 20:
        assert (claims(k, n, 20, better=2.0) == 1).all()


def test_equal_ranks_are_dealt_out_as_they_are():
    # Two seeds of three tell the strategies apart, and of four ways in which they could, two are as clear.
    found = statistics.rank({"a": [1.0, 1.0, 1.0], "b": [1.0, 0.0, 0.0]})
    assert (found.p_value, found.mean_ranks) == (0.5, {"a": 7 / 6, "b": 11 / 6})
    same = statistics.rank(dict.fromkeys("abcdef", np.arange(20.0)))
    assert (same.p_value, same.critical_difference, same.groups) == (1.0, 0.0, (tuple("abcdef"),))
    assert statistics.rank({name: np.full(20, place) for place, name in enumerate("abcdef")}).p_value == 1e-4


def test_strategies_without_values_are_named_and_the_others_ranked():
    rng, none = np.random.default_rng(0), np.full(10, np.nan)
    values = {"random": rng.normal(size=10), "none": none, "margin": 9 + rng.normal(size=10)}
    found, without = statistics.rank(values), statistics.rank({name: values[name] for name in ("random", "margin")})
    assert found == without._replace(unranked=("none",))
    assert found.groups == (("margin",), ("random",))
    alone = statistics.rank({"a": none, "b": values["random"], "c": none})
    assert alone == ({"b": 1.0}, 1.0, 0.0, (("b",),), 10, ("a", "c"))
    nothing = statistics.rank({"a": none, "b": none})
    assert (nothing.mean_ranks, nothing.groups, nothing.num_seeds, nothing.unranked) == ({}, ((),), 0, ("a", "b"))


if __name__ == "__main__":
    for title, better, studies in (("alike", 0.0, 4000), ("one better by two standard deviations", 2.0, 500)):
        print(f"\n{title}: ranking / comparisons with the first, {studies} studies\n")
        counts = (2, 3, 4, 5, 6, 8, 10, 14, 20)
        print(f"| strategies | {' | '.join(f'{n} seeds' for n in counts)} |\n|---{'|---' * len(counts)}|")
        for k in range(2, 7):
            shares = [claims(k, n, studies, better) for n in counts]
            print(f"| {k} | {' | '.join('{:.3f} / {:.3f}'.format(*pair) for pair in shares)} |", flush=True)
