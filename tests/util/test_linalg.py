"""Factorisations agree with NumPy's, and no program makes a batch of LAPACK calls on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import calibration, heuristics, posteriors, selection
from baal_jax._util import linalg
from baal_jax.posteriors import kernels
from baal_jax.selection.sets._kernel import Features
from tests import fixtures


def positive(rng, num, size):
    rows = rng.normal(size=(num, size, size + 3))
    return (rows @ rows.swapaxes(1, 2) / size + 0.1 * np.eye(size)).astype(np.float32)


def close(found, expected, tolerance=2e-4):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("size", "columns"), [(1, 7), (5, 7), (5, 0), (16, 1), (17, 7), (17, 0)])
def test_elimination_is_a_factorisation(size, columns, rng):
    matrices, right = positive(rng, 6, size), rng.normal(size=(6, size, columns)).astype(np.float32)
    found = jax.jit(linalg.eliminate)(matrices, right)
    assert [x.shape for x in found] == [(6, size), (6, size, columns), (6, size, columns)]
    root = np.linalg.cholesky(matrices.astype(np.float64))
    diagonal = np.diagonal(root, axis1=1, axis2=2)
    close(found.pivots, diagonal**2)
    if columns:
        close(found.half, np.linalg.solve(root / diagonal[:, None], right))
        close(found.solution, np.linalg.solve(matrices.astype(np.float64), right))


def all_of(matrix):
    root = linalg.cholesky(matrix)
    solved = linalg.solve_triangular(root, matrix, lower=True, trans="T")
    return root, linalg.inverse(matrix), *linalg.eigh(matrix), linalg.triangular_root(matrix), solved


@pytest.mark.parametrize("transform", [lambda f: f, jax.vmap], ids=["alone", "vmap"])
def test_factorisations_are_those_of_numpy(transform, rng):
    matrices = positive(rng, 5, 6)
    matrix = matrices if transform is jax.vmap else matrices[0]
    root, inverse, values, vectors, upper, solved = map(np.asarray, jax.jit(transform(all_of))(matrix))
    close(root, np.linalg.cholesky(matrix))
    close(inverse, np.linalg.inv(matrix))
    close(values, np.linalg.eigvalsh(matrix))
    close(matrix @ vectors, vectors * values[..., None, :], 1e-3)
    np.testing.assert_array_equal(np.tril(upper, -1), 0)
    close(upper.swapaxes(-1, -2) @ upper, matrix @ matrix, 1e-3)
    close(solved, np.linalg.solve(root.swapaxes(-1, -2), matrix))


# No batch of LAPACK calls: jaxlib waits for the threads of a pool in one of them, so programs side by side hang.


def fitted_draws(posterior, shape=(12, 4)):
    inputs = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    data, labelled = baal.Dataset(inputs, np.arange(12) % 3), fixtures.first(7)

    def run(key):
        return baal.predict(key, posterior, posterior.fit(key, data, labelled), inputs, num_samples=2)

    return run


def network(make, **options):
    return fitted_draws(make(baal.from_linen(fixtures.Net(width=4)), fixtures.trainer(num_steps=1), **options))


def picked(selector, *transforms):
    def run(key):
        factors = jax.random.normal(key, (12, 4) if transforms else (12, 3, 4))
        features = Features((factors,), jnp.float32(0.0))
        for transform in transforms:
            features = transform(key, features, jnp.arange(12) < 3, jnp.ones(12, bool))
        return selector(key, features, jnp.arange(12) >= 3, 2, jnp.arange(12) < 3)[0]

    return run


def gaussian_epig(size):
    def run(key):
        outputs = jax.random.normal(key, (9, 6, size))
        return heuristics.gaussian_epig(outputs, outputs[:, :4], noise=1.0)

    return run


def dirichlet(key):
    logits = jax.random.normal(key, (1, 20, 3))
    return calibration.dirichlet(off_diagonal=0.1).fit(logits, jnp.arange(20) % 3, jnp.ones(20, bool))


GAUSSIAN_PROCESS = posteriors.gaussian_process(kernels.dense(1), num_classes=3, num_features=8)
PROGRAMS = {
    "gaussian_process": lambda: fitted_draws(GAUSSIAN_PROCESS),
    "laplace": lambda: network(posteriors.laplace),
    "laplace, kronecker": lambda: network(posteriors.laplace, structure="kronecker"),
    "dropout_gp": lambda: network(posteriors.dropout_gp),
    "bait": lambda: picked(selection.sets.selectors.bait()),
    "posterior": lambda: picked(selection.sets.selectors.max_det(), selection.sets.transforms.posterior()),
    "gaussian_epig": lambda: gaussian_epig(3),
    "gaussian_epig, large": lambda: gaussian_epig(20),
    "dirichlet": lambda: dirichlet,
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about LAPACK")
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_batch_of_lapack_calls_is_compiled(name):
    text = jax.jit(jax.vmap(PROGRAMS[name]())).lower(jax.random.split(jax.random.key(0), 5)).as_text()
    calls = re.findall(r"custom_call @(lapack_s\w+)\(.*-> \(?tensor<([\dx]+)xf32>", text)
    assert calls or name == "gaussian_epig"
    for call, shape in calls:
        assert len([size for size in shape.split("x") if size != "1"]) <= 2, (call, shape)
