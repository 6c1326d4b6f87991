"""Programs as a GPU or a TPU gets them, lowered without one and read: nothing in them waits for the host or crawls."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.mlir import ir

import baal_jax as baal
from baal_jax import heuristics, losses, selection
from baal_jax._util import linalg, numerics, random
from baal_jax.study import _program
from tests import fixtures
from tests.contracts import test_posteriors as posterior_suite
from tests.contracts import test_selections as selection_suite

# A pool of a size that nothing else has. A batch is smaller, so that prediction is a loop over batches.
NUM, BATCH, DRAWS, QUERY, ROUNDS = 37, 8, 5, 3, 2
# What a platform has for matrices. All else is made of operations, which the compiler can fuse and partition.
KERNELS = {
    "cuda": {
        "cusolver_potrf_ffi", "cusolver_syevd_ffi", "cusolver_geqrf_ffi", "cusolver_orgqr_ffi", "cusolver_getrf_ffi",
        "cu_lu_pivots_to_permutation",
    },
    "tpu": {"Eigh", "Qr", "ProductOfElementaryHouseholderReflectors", "LuDecomposition"},
}  # fmt: skip
HOST = {"stablehlo.send", "stablehlo.recv", "stablehlo.infeed", "stablehlo.outfeed"}
SAME = {"stablehlo.convert", "stablehlo.reshape", "stablehlo.broadcast_in_dim"}


class Program:
    """A lowered function, as operations that can be asked."""

    def __init__(self, lowered):
        self.text, self.operations, self.callers = lowered.as_text(), [], {}
        self.module = lowered.compiler_ir("stablehlo")  # which owns the operations
        self.module.operation.walk(self._see)

    def _see(self, operation):
        self.operations.append(operation)
        if operation.name == "func.call":
            name = ir.FlatSymbolRefAttr(operation.attributes["callee"]).value
            self.callers.setdefault(name, []).append(operation)
        return ir.WalkResult.ADVANCE

    def kernels(self):
        calls = [operation for operation in self.operations if operation.name == "stablehlo.custom_call"]
        return {ir.StringAttr(call.attributes["call_target_name"]).value for call in calls}

    def numbers(self, value):
        """The integers that a value starts as, wherever they come from."""
        if isinstance(value.owner, ir.Block):
            place, parent = ir.BlockArgument(value).arg_number, value.owner.owner.operation  # not a view of it
            if parent.name == "stablehlo.while":
                return self.numbers(parent.operands[place])
            if parent.name == "func.func":
                callers = self.callers.get(ir.StringAttr(parent.attributes["sym_name"]).value, [])
                return set().union(*(self.numbers(call.operands[place]) for call in callers))
            return set()
        operation = value.owner
        if operation.name in SAME:
            return self.numbers(operation.operands[0])
        if operation.name != "stablehlo.constant" or not str(value.type).endswith(("i32>", "i64>")):
            return set()
        return set(np.asarray(ir.DenseElementsAttr(operation.attributes["value"])).ravel().tolist())

    def steps_of_one(self, loop, counter):
        """Whether a counter grows by one, or nobody can say by how much."""
        if not isinstance(counter.owner, ir.Block):
            return True
        last = list(loop.regions[1].blocks[0].operations)[-1]
        grown = last.operands[ir.BlockArgument(counter).arg_number].owner
        if not isinstance(grown, ir.Block) and grown.name == "stablehlo.select":  # of seeds that are not done
            grown = grown.operands[1].owner
        if isinstance(grown, ir.Block) or grown.name != "stablehlo.add":
            return True
        return any(self.numbers(operand) in (set(), {1}) for operand in list(grown.operands)[1:])

    def loops(self):
        """How often a loop of single steps turns, where that is written in the program."""
        turns = set()
        for loop in (operation for operation in self.operations if operation.name == "stablehlo.while"):
            for operation in loop.regions[0].blocks[0].operations:
                if operation.name == "stablehlo.compare" and self.steps_of_one(loop, operation.operands[0]):
                    turns |= self.numbers(operation.operands[1])
        return turns


def programs(function, *arguments, platforms=tuple(KERNELS)):
    """Of each platform, traced once."""
    traced = jax.jit(lambda *given: function(*given)).trace(*arguments)
    return {name: Program(traced.lower(lowering_platforms=(name,))) for name in platforms}


def check(function, *arguments, **options):
    for platform, program in programs(function, *arguments, **options).items():
        assert program.kernels() <= KERNELS[platform], platform
        assert not HOST & {operation.name for operation in program.operations}
        assert "f64" not in program.text
        assert NUM not in program.loops(), f"{platform}: one example at a time"


def check_loop(loop, data, test, target_inputs=None):
    """A run, which is steps, and seeds at once, as accelerators have them in a study."""
    state = loop.init(jax.random.key(0), data, num_initial=5)

    def run(state, data, test, target_inputs):
        options = {"state": state, "num_rounds": ROUNDS, "target_inputs": target_inputs}
        return baal.run(loop, None, data, test, **options)

    check(run, state, data, test, target_inputs)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)
    check(jax.vmap(run, (0, None, None, None)), states, data, test, target_inputs, platforms=("cuda",))


def rows(num, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, 4)), jnp.float32)


@posterior_suite.each_case
def test_a_loop_with_a_posterior(case):
    def labels(inputs):
        return inputs[:, :3].argmax(1).astype(jnp.int32) if case[2] == "classification" else inputs[:, 0]

    data, test = (baal.Dataset(inputs, labels(inputs)) for inputs in (rows(NUM), rows(11)))
    score = heuristics.bald if case[2] == "classification" else heuristics.variance
    options = {"query_size": QUERY, "num_samples": DRAWS, "batch_size": BATCH}
    check_loop(baal.active_loop(posterior_suite.make(*case), selection.top_k(score), **options), data, test)


@selection_suite.every_selection
def test_a_loop_with_a_selection(name):
    options = {"query_size": QUERY, "num_samples": DRAWS, "batch_size": BATCH}
    features = lambda state, inputs: inputs @ state  # noqa: E731
    posterior = fixtures.random_network()
    loop = baal.active_loop(posterior, selection_suite.build(name), features=features, **options)
    data, test = (baal.Dataset(rows(num), jnp.zeros(num, jnp.int32)) for num in (NUM, 11))
    check_loop(loop, data, test, rows(7))


def test_the_rules_find_what_breaks_them():
    def host(x):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def crawl(x):
        return jax.lax.map(lambda row: row @ row, x)

    def crawl_to(x):  # a bound that is handed in and carried
        return jax.jit(lambda end, x: jax.lax.fori_loop(0, end, lambda i, x: x.at[i].add(1.0), x))(NUM, x)

    def in_blocks(x):
        block = lambda carry: (carry[0] + 8, carry[1] + 1.0)  # noqa: E731
        return jax.lax.while_loop(lambda carry: carry[0] < NUM, block, (0, x))[1]

    x = rows(NUM)
    for broken in (crawl, crawl_to):
        for function, given in ((broken, x), (jax.vmap(broken), x[None])):
            with pytest.raises(AssertionError, match="one example at a time"):
                check(function, given)
    check(in_blocks, x)
    check(jax.vmap(in_blocks), x[None])
    check(jnp.linalg.cholesky, jnp.eye(NUM))
    with pytest.raises(AssertionError, match="gesvd"):
        check(jnp.linalg.svd, jnp.eye(NUM))
    with pytest.raises(ValueError, match="platform"):  # jax itself cannot lower it elsewhere
        check(host, x)
    with pytest.raises(AssertionError), jax.enable_x64(True):
        check(lambda x: x.astype("float64"), x)


def fit_of_pretrained(width=128):
    """Lowered for each platform: weights of 64 KB that are given."""
    apply = lambda params, inputs, key: inputs @ params["w"]  # noqa: E731
    init = lambda key, inputs: {"w": jnp.zeros((inputs.shape[1], width))}  # noqa: E731
    given = {"w": np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)}
    model = baal.from_functions(init, apply, variables=given)
    fit = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=2, batch_size=4)(model)
    data = baal.Dataset(jnp.ones((NUM, width)), jnp.zeros(NUM, jnp.int32))
    return programs(fit, jax.random.key(0), data, jnp.ones(NUM, bool))


def test_pretrained_weights_are_asked_of_the_host_once_a_fit():
    """The one known exception, as jax would write them into the program; not where it makes arguments of them."""
    with pytest.raises(ValueError, match="platform"):
        fit_of_pretrained()
    code = "from tests.test_accelerators import fit_of_pretrained as fit\n"
    code += "for program in fit().values(): print(len(program.text) < 2**17, sorted(program.kernels()))"
    environment = os.environ | {"JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS": "1"}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert printed.split("\n")[:2] == ["True []"] * 2


def test_seeds_of_a_study_run_side_by_side(monkeypatch, mesh):
    """On a CPU one after the other."""
    seeds, mesh = jnp.arange(4 * NUM, dtype=jnp.int32), jax.sharding.Mesh(mesh.devices, ("seeds",))

    def one_seed(seed, which, data):
        return jnp.sin((seed * which + data).astype(jnp.float32))

    def seeds_in_turn():
        over_devices = _program._over_devices(one_seed, mesh)
        given = seeds, jnp.int32(3), jnp.int32(1)
        return over_devices(*given), programs(over_devices, *given)["tpu"].loops()

    values, turns = seeds_in_turn()
    assert turns == {NUM}
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    there, turns = seeds_in_turn()
    assert turns == set()
    fixtures.close(there, values)


@pytest.fixture
def elsewhere(monkeypatch):
    """What is chosen by platform, as accelerators get it."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *given, default, cpu: default(*given))


@pytest.mark.usefixtures("elsewhere")
def test_numbers_of_the_branch_of_accelerators(key, rng):
    """Each against something else than the branch of CPUs, since jax keeps what it has traced."""
    shape = (7, 211)  # so many words are another branch, and no other test asks for these
    fixtures.same(jax.random.bits(random.vectorised(key), shape), jax.random.bits(key, shape))
    fixtures.same_key(jax.jit(functools.partial(random.split, num=13))(key), jax.random.split(key, 13))
    draws = rng.normal(size=(5, 6, 3)).astype(np.float32)
    fixtures.close(numerics.mean_over_draws(lambda row: 2 * row, draws), 2 * draws.mean(0), 1e-5)
    fixtures.close(numerics.variance_over_draws(lambda row: row, draws), draws.var(0), 1e-4)
    half = rng.normal(size=(3, 9, 9)).astype(np.float32)
    matrices = half @ half.transpose(0, 2, 1) + np.eye(9, dtype=np.float32)[None]
    roots = jax.vmap(linalg.cholesky)(matrices)
    fixtures.close(roots, np.linalg.cholesky(matrices), 1e-3, 1e-4)
    fixtures.close(jax.vmap(linalg.eigh)(matrices)[0], np.linalg.eigvalsh(matrices), 1e-3, 1e-4)
    fixtures.close(jax.vmap(linalg.inverse)(matrices), np.linalg.inv(matrices), 1e-3, 1e-3)
    upper = jax.vmap(linalg.triangular_root)(half)
    fixtures.close(upper.transpose(0, 2, 1) @ upper, half.transpose(0, 2, 1) @ half, 1e-3, 1e-4)
    solved = jax.vmap(functools.partial(linalg.solve_triangular, lower=True))(roots, half)
    fixtures.close(roots @ solved, half, 1e-3, 1e-4)
