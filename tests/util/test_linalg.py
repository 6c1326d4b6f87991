"""Factorisations agree with NumPy's, and no program makes a batch of LAPACK calls on a CPU."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax
from baal_jax._util import linalg


def positive(rng, num, size):
    rows = rng.normal(size=(num, size, size + 3))
    return (rows @ rows.swapaxes(1, 2) / size + 0.1 * np.eye(size)).astype(np.float32)


def close(found, expected, tolerance=2e-4):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("size", "columns"), [(1, 7), (5, 0), (16, 3), (17, 7), (17, 0)])
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


def test_factorisations_are_those_of_numpy(rng):
    matrix = positive(rng, 5, 6)
    root, inverse, values, vectors, upper, solved = map(np.asarray, jax.jit(jax.vmap(all_of))(matrix))
    close(root, np.linalg.cholesky(matrix))
    close(inverse, np.linalg.inv(matrix))
    close(values, np.linalg.eigvalsh(matrix))
    close(matrix @ vectors, vectors * values[..., None, :], 1e-3)
    np.testing.assert_array_equal(np.tril(upper, -1), 0)
    close(upper.swapaxes(-1, -2) @ upper, matrix @ matrix, 1e-3)
    close(solved, np.linalg.solve(root.swapaxes(-1, -2), matrix))


def slopes(matrix):
    def total(matrix):
        parts = (*linalg.eliminate(matrix[None], matrix[None]), *linalg.eigh(matrix))
        return sum(jnp.sum(part) for part in parts)

    return jax.jvp(jax.grad(total), (matrix,), (matrix,))


@pytest.mark.skipif(
    jax.default_backend() != "cpu",
    reason="LAPACK serves CPUs alone: other backends lower these to kernels of their own",
)
def test_no_batch_of_lapack_calls_is_compiled(rng):
    """Jaxlib waits for the threads of a pool in one of them, so programs side by side hang."""
    for function, arguments in (
        (all_of, positive(rng, 5, 6)[None]),
        (linalg.eliminate, (positive(rng, 10, 17).reshape(5, 2, 17, 17), np.ones((5, 2, 17, 3), np.float32))),
        (slopes, (positive(rng, 5, 17),)),
    ):
        calls = re.findall(
            r"custom_call @(lapack_s\w+)\(.*-> \(?tensor<([\dx]+)xf32>",
            jax.jit(jax.vmap(function)).lower(*arguments).as_text(),
        )
        assert calls
        for call, shape in calls:
            assert len([size for size in shape.split("x") if size != "1"]) <= 2, (call, shape)
    for path in Path(baal_jax.__file__).parent.rglob("*.py"):  # nor does another file call it
        text = path.read_text(encoding="utf-8")
        assert path.name == "linalg.py" or not re.search(r"jnp\.linalg\.(?!norm)|jax\.scipy\.linalg|cho_solve", text)
