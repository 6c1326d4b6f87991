"""Factorisations agree with NumPy's, and no program makes a batch of LAPACK calls on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import calibration, heuristics, losses, posteriors, selection
from baal_jax._util import linalg
from baal_jax.posteriors import kernels
from baal_jax.selection.sets._kernel import Features
from tests import networks

RNG = np.random.default_rng(0)


def positive(num, size):
    rows = RNG.normal(size=(num, size, size + 3))
    return (rows @ rows.swapaxes(1, 2) / size + 0.1 * np.eye(size)).astype(np.float32)


def close(found, expected, tolerance=2e-4):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("columns", [0, 1, 7])
@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 24])
def test_elimination_is_a_factorisation(size, columns):
    matrices, right = positive(6, size), RNG.normal(size=(6, size, columns)).astype(np.float32)
    found = jax.jit(linalg.eliminate)(matrices, right)
    assert [x.shape for x in found] == [(6, size), (6, size, columns), (6, size, columns)]
    root = np.linalg.cholesky(matrices.astype(np.float64))
    diagonal = np.diagonal(root, axis1=1, axis2=2)
    close(found.pivots, diagonal**2)
    if columns:
        close(found.half, np.linalg.solve(root / diagonal[:, None], right))
        close(found.solution, np.linalg.solve(matrices.astype(np.float64), right))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, lambda f: jax.jit(jax.vmap(f))], ids=["", "jit", "vmap"])
def test_factorisations_are_those_of_numpy(transform):
    matrices = jnp.asarray(positive(5, 6))
    matrix = matrices if transform(jnp.sum)(matrices).ndim else matrices[0]
    root = transform(linalg.cholesky)(matrix)
    close(root, np.linalg.cholesky(matrix))
    close(transform(linalg.inverse)(matrix), np.linalg.inv(matrix))
    values, vectors = transform(linalg.eigh)(matrix)
    close(values, np.linalg.eigvalsh(matrix))
    close(jnp.matmul(matrix, vectors), vectors * jnp.expand_dims(values, -2), 1e-3)
    upper = transform(linalg.triangular_root)(matrix)
    close(jnp.matmul(jnp.swapaxes(upper, -1, -2), upper), jnp.matmul(matrix, matrix), 1e-3)
    solved = transform(lambda a, b: linalg.solve_triangular(a, b, lower=True, trans="T"))(root, matrix)
    close(solved, np.linalg.solve(np.swapaxes(root, -1, -2), matrix))


# No batch of LAPACK calls: jaxlib waits for the threads of a pool in one of them, so programs side by side hang.


def fitted_draws(posterior):
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(12, 2, 2, 1)).astype(np.float32))
    data, labelled = baal.Dataset(inputs, jnp.arange(12) % 3), jnp.arange(12) < 7

    def run(key):
        return baal.predict(key, posterior, posterior.fit(key, data, labelled), inputs, num_samples=2)

    return run


def network(make, **options):
    trainer = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1, batch_size=4)
    return fitted_draws(make(baal.from_linen(networks.LinenKeyword()), trainer, **options))


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


PROGRAMS = {
    "gaussian_process": lambda: fitted_draws(
        posteriors.gaussian_process(kernels.dense(1), num_classes=3, num_features=8)
    ),
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
