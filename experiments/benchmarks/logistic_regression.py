"""Active learning on embeddings: logistic regression and Gaussian processes beside scikit-learn's, in one run.

Margin sampling on MNIST embeddings (20,000 x 10, 4,000 for testing): 29 rounds of 10 queries after 10 random labels; a
round is a fit, the scores of the whole pool and the picks. Sides: scikit-learn's LogisticRegression and SVC (radial
basis functions, gaps of decision values), ours as a point estimate, with 20 draws, with the precision of the largest
evidence, and a Gaussian process. Optima agree on the labels of scikit-learn's loop. Compilation is timed apart. Then 20
seeds of 4 strategies.

    python experiments/benchmarks/logistic_regression.py --data mnist_vae.npz
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import timed
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

import baal_jax as baal
from baal_jax import heuristics, posteriors, selection
from baal_jax.posteriors import kernels


@dataclasses.dataclass(frozen=True)
class Config:
    """All sides.

    Attributes:
        data: file with train_inputs, train_targets, test_inputs and test_targets.
        rounds: queries.
        query_size: picks a round.
        num_samples: draws.
        repeats: timed runs of each side, of which the median counts.
        seeds: of the study at the end, 0 for none.
    """

    data: str = "../shared/data/mnist_vae.npz"
    rounds: int = 29
    query_size: int = 10
    num_samples: int = 20
    repeats: int = 5
    seeds: int = 20


def main(config: Config) -> None:
    """Equality, then all sides by turns, then the study."""
    arrays = np.load(config.data)
    train, test = (
        baal.Dataset(arrays[f"{part}_inputs"].astype(np.float32), arrays[f"{part}_targets"].astype(np.int32))
        for part in ("train", "test")
    )
    first = np.random.default_rng(0).permutation(len(train.targets))[: config.query_size]
    picks = sklearn_loop(config, train, first, "logistic")
    compare_optima(train, picks)
    on_device = jax.device_put(train)
    sides = {f"scikit-learn, {kind}": lambda kind=kind: sklearn_loop(config, train, first, kind) for kind in MODELS}
    for name, (posterior, num_samples) in heads(config).items():
        sides[f"baal_jax, {name}"] = our_loop(config, posterior, num_samples, on_device, first)
    firsts, seconds = {}, {name: [] for name in sides}
    for name, side in sides.items():
        firsts[name] = timed(side)[1]
        print(f"{name}: first call {firsts[name]:.2f} s", flush=True)
    for _ in range(config.repeats):
        for name, side in sides.items():
            labelled, spent = timed(side)
            seconds[name].append(spent)
    print(f"{'':34}{'s a run':>9}{'ms a round':>12}{'first call':>12}{'ratio':>8}{'accuracy':>10}")
    reference = np.median(seconds["scikit-learn, logistic"])
    for name, side in sides.items():
        labelled, spent = np.asarray(side()), np.median(seconds[name])
        accuracy = MODELS["logistic"]().fit(train.inputs[labelled], train.targets[labelled]).score(*test)
        round_ms = 1e3 * spent / config.rounds
        print(f"{name:34}{spent:9.3f}{round_ms:12.1f}{firsts[name]:12.2f}{reference / spent:8.1f}{accuracy:10.3f}")
    if config.seeds:
        strategies(config, on_device, jax.device_put(test))


MODELS = {
    "logistic": lambda: LogisticRegression(max_iter=1000),
    "svc": lambda: SVC(),
}


def heads(config: Config) -> dict:
    """Ours; room for as many labels as there will be in the Gaussian process."""
    most = config.query_size * (config.rounds + 1)
    process = posteriors.gaussian_process(kernels.rbf(), num_classes=10, max_labelled=most, num_features=256)
    draws = config.num_samples
    return {
        "point estimate": (posteriors.logistic_regression(10, prior_precision=1.0, point_estimate=True), 1),
        f"{draws} draws": (posteriors.logistic_regression(10, prior_precision=1.0), draws),
        f"{draws} draws, evidence": (posteriors.logistic_regression(10), draws),
        "Gaussian process, 4 draws": (process, 4),
    }


def sklearn_loop(config: Config, train: baal.Dataset, first: np.ndarray, kind: str) -> np.ndarray:
    """Ids of all that was labelled."""
    labelled = np.zeros(len(train.targets), bool)
    labelled[first] = True
    order = list(first)
    for _ in range(config.rounds):
        model = MODELS[kind]().fit(train.inputs[labelled], train.targets[labelled])
        scores = model.predict_proba(train.inputs) if kind == "logistic" else model.decision_function(train.inputs)
        best = np.partition(scores, -2, axis=1)[:, -2:]
        gaps = np.where(labelled, np.inf, best[:, 1] - best[:, 0])
        picked = np.argpartition(gaps, config.query_size)[: config.query_size]
        labelled[picked] = True
        order += picked.tolist()
    return np.array(order)


def our_loop(config: Config, posterior: baal.Posterior, draws: int, train: baal.Dataset, first: np.ndarray):
    """The same, all rounds in one program."""
    acquisition = selection.top_k(heuristics.margin)
    loop = baal.active_loop(posterior, acquisition, query_size=config.query_size, num_samples=draws)
    pool = baal.pool.label(baal.pool.init(len(train.targets)), jnp.asarray(first))
    state = loop.init(jax.random.key(0), train, pool=pool)

    def call() -> np.ndarray:
        infos = baal.run(loop, None, train, None, num_rounds=config.rounds, state=state)[1]
        return np.append(first, np.asarray(infos.indices))

    return call


def compare_optima(train: baal.Dataset, picks: np.ndarray) -> None:
    """The same weights as scikit-learn's on the labels of three moments, whose column of ones is penalised here."""
    for count in (50, 150, len(picks)):
        ids = picks[:count]
        design = np.column_stack([train.inputs[ids].astype(float), np.ones(count)])
        theirs = LogisticRegression(fit_intercept=False, tol=1e-10, max_iter=10_000).fit(design, train.targets[ids])
        labelled = np.zeros(len(train.targets), bool)
        labelled[ids] = True
        fit = posteriors.logistic_regression(10, prior_precision=1.0).fit
        ours = np.asarray(fit(jax.random.key(0), train, jnp.asarray(labelled)).weights)[:, theirs.classes_]
        if len(theirs.classes_) == 10:
            np.testing.assert_allclose(ours, theirs.coef_.T, atol=1e-4)
            print(f"{count} labels: the optimum is scikit-learn's within {np.abs(ours - theirs.coef_.T).max():.1e}")


def strategies(config: Config, train: baal.Dataset, test: baal.Dataset) -> None:
    """All seeds of each strategy, with the accuracy of every round."""
    keys, total = jax.random.split(jax.random.key(0), config.seeds), 0.0
    options = {"query_size": config.query_size, "num_samples": config.num_samples}
    for name in ("random", "margin", "bald", "entropy"):
        loop = baal.active_loop(posteriors.logistic_regression(10), selection.by_name(name), **options)

        def one(key, loop=loop):
            given = {"num_initial": config.query_size, "num_rounds": config.rounds + 1}
            return baal.run(loop, key, train, test, **given)[1].metrics["accuracy"]

        accuracy, spent = timed(lambda one=one: jax.jit(lambda keys: jax.lax.map(one, keys))(keys))
        total += spent
        print(f"{name}: {config.seeds} seeds, {spent:.1f} s with compilation, accuracy {accuracy[:, -1].mean():.3f}")
    print(f"the study: {total:.1f} s")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
