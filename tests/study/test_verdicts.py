"""Where nothing differs, at most 5 % of studies claim a difference; ``python -m`` this file prints the whole table."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import metrics
from baal_jax.study import statistics
from tests.study.files import make_results


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


def test_few_seeds_bound_no_share_of_labels_and_no_labels_are_a_number_of_labels():
    # Five seeds are all on one side too often, where nothing differs: 2 of 32.
    for n, confidence, bounds in (
        (6, 0.95, (0.5, 0.5)),
        (5, 0.95, (0, np.inf)),
        (5, 0.9, (0.5, 0.5)),
        (1, 0.5, (0, np.inf)),
    ):
        found = statistics.labels_saved(np.ones(n), np.full(n, 2.0), confidence=confidence)
        assert found[:5] == (1, 2, 0.5, *bounds)
    none, some = np.zeros(6), np.full(6, 20)
    for pair, ratio in (((none, some), [0] * 3), ((some, none), [np.inf] * 3), ((none, none), [np.nan, 0, np.inf])):
        np.testing.assert_array_equal(statistics.labels_saved(*pair)[2:5], ratio)


def test_curves_may_begin_without_labels():
    results = make_results(seeds=8, effect={"bald": 0.1})
    for runs in results.runs.values():
        runs.num_labelled[:] -= 10
    found = statistics.summary(results, target=0.0)
    assert (found.low, [row.labels for row in found.rows], found.rows[1].verdict.verdict) == (0, [0] * 3, "better")
    assert "– [0.00, ∞]" in statistics.markdown(found)


def test_directions_are_known_of_our_metrics_and_asked_for_of_others():
    classes = metrics.classification(top_k=(2,), extra=("precision", "recall", "f1", "auroc", "average_precision"))
    more, real = (
        metrics.classification(extra=("adaptive_ece", "classwise_ece")),
        metrics.regression(extra=("crps_draws", "crps_fair")),
    )
    for ours, logits, targets in (
        (classes, (1, 3, 3), [0, 1, 2]),
        (more, (1, 3, 3), [0, 1, 2]),
        (real, (2, 3, 1), [0.0]),
    ):
        summary = jax.eval_shape(lambda x, ours=ours: ours.summarise(baal.Predictions(x)), jnp.zeros(logits))
        for name in jax.eval_shape(ours.compute, summary, jnp.array(targets * (3 // len(targets)))):
            statistics.is_higher_better(name)
    for name in ("coverage", "neg_log_loss", "false_negative_error", "top_k_accuracy", "val/accuracy", "x" * 999):
        with pytest.raises(ValueError, match=f"metric='{name[:60]}' does not tell .* pass higher_is_better=") as told:
            statistics.is_higher_better(name)
        assert len(str(told.value)) < 300
        assert [statistics.is_higher_better(name, answer) for answer in (True, False)] == [True, False]


def test_a_study_keeps_directions_and_a_target_of_its_own_metric():
    results = make_results(seeds=8, effect={"bald": 0.1})
    for runs in results.runs.values():
        runs.metrics["score"] = runs.metrics["accuracy"]
    with pytest.raises(ValueError, match=r"metric='score' does not tell .* About"):
        statistics.summary(results, "score")
    results.description.update(higher_is_better={"score": True, "accuracy": False}, target=0.25)
    for metric, override, verdict in (
        ("score", None, "better"),
        ("score", False, "worse"),
        ("accuracy", None, "worse"),
    ):
        found = statistics.summary(results, metric, higher_is_better=override)
        assert (found.rows[1].verdict.verdict, found.target == 0.25) == (verdict, metric == "accuracy")


if __name__ == "__main__":
    for title, better, studies in (("alike", 0.0, 4000), ("one better by two standard deviations", 2.0, 500)):
        print(f"\n{title}: ranking / comparisons with the first, {studies} studies\n")
        counts = (2, 3, 4, 5, 6, 8, 10, 14, 20)
        print(f"| strategies | {' | '.join(f'{n} seeds' for n in counts)} |\n|---{'|---' * len(counts)}|")
        for k in range(2, 7):
            shares = [claims(k, n, studies, better) for n in counts]
            print(f"| {k} | {' | '.join('{:.3f} / {:.3f}'.format(*pair) for pair in shares)} |", flush=True)
