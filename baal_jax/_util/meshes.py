"""Arrays on a mesh of devices and hosts: compiled alike on Auto and Explicit axes, read back, and cut into blocks.

The compiler splits a program over the devices of a mesh. With Explicit axes every operation must say how, which
networks and most array code do not; so axes are Auto inside of what is compiled here, and Explicit in what it returns.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax import core
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

_is_list = lambda node: isinstance(node, list)  # noqa: E731, a source, perhaps of a million items


def jit(function: Callable[..., Any], **static: Any) -> Any:
    """``jax.jit``, for arrays on any mesh."""
    return auto(jax.jit(function, **static))


def auto(function: Callable[..., Any]) -> Any:
    """A function that is told of the mesh of its arguments, and inside of which axes are Auto."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        leaves, structure = jax.tree.flatten((arguments, options), is_leaf=_is_list)
        mesh = jax.sharding.get_abstract_mesh()
        is_known = not mesh.empty
        if not is_known:
            mesh = next((mesh for leaf in leaves if (mesh := _mesh_of(leaf)) and not mesh.empty), mesh)
        if AxisType.Explicit not in mesh.axis_types and (is_known or mesh.size < 2):  # an empty one is of size 1
            return function(*arguments, **options)
        if any(isinstance(leaf, core.Tracer) for leaf in leaves):
            return _traced(function, leaves, structure, mesh)
        mesh = jax.sharding.get_mesh() if isinstance(mesh, AbstractMesh) else mesh
        relaxed = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        arguments, options = jax.tree.unflatten(structure, [_moved(leaf, mesh, relaxed) for leaf in leaves])
        with jax.set_mesh(relaxed):
            outputs = function(*arguments, **options)
        return jax.tree.map(lambda leaf: _moved(leaf, relaxed, mesh), outputs)

    vars(call).update({name: getattr(function, name) for name in ("lower", "eval_shape") if hasattr(function, name)})
    return call


def _traced(function: Callable[..., Any], leaves: list, structure: Any, mesh: Any) -> Any:
    """The call inside a program of the caller's, whose outputs are split as the inputs are."""
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = [leaf for leaf, there in zip(leaves, is_array, strict=True) if there]

    def on(*arrays: Any) -> Any:
        given = iter(arrays)
        whole = [next(given) if there else leaf for leaf, there in zip(leaves, is_array, strict=True)]
        arguments, options = jax.tree.unflatten(structure, whole)
        return function(*arguments, **options)

    specs = [(leaf.shape, jax.typeof(leaf).sharding.spec) for leaf in arrays if isinstance(leaf, jax.Array)]
    axes = {size: axis for shape, spec in specs for size, axis in zip(shape, spec, strict=False) if axis is not None}

    def split(leaf: Any) -> NamedSharding:
        first = next((dim for dim, size in enumerate(leaf.shape) if size in axes), None)
        spec = [None] * leaf.ndim if first is None else [None] * first + [axes[leaf.shape[first]]]
        return NamedSharding(mesh, PartitionSpec(*spec))

    shapes = jax.eval_shape(jax.sharding.auto_axes(on, out_sharding=NamedSharding(mesh, PartitionSpec())), *arrays)
    return jax.sharding.auto_axes(on, out_sharding=jax.tree.map(split, shapes))(*arrays)


def _mesh_of(leaf: Any) -> Any:
    """The mesh of an array, None for all else."""
    if not isinstance(leaf, jax.Array):
        return None
    return getattr(jax.typeof(leaf).sharding if isinstance(leaf, core.Tracer) else leaf.sharding, "mesh", None)


def _moved(leaf: Any, old: Any, new: Any) -> Any:
    """The same array, of the same devices, on a mesh with axes of another kind."""
    if not isinstance(leaf, jax.Array) or _mesh_of(leaf) != old:
        return leaf
    sharding = NamedSharding(new, leaf.sharding.spec)  # pyright: ignore[reportAttributeAccessIssue]
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _moved(jax.random.key_data(leaf), old, new)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    parts = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)


def on_host(array: Any) -> np.ndarray:
    """An array as NumPy, whole, of every process of its mesh."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    with jax.ensure_compile_time_eval():
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@contextmanager
def first_process() -> Iterator[bool]:
    """Whether this process is the one of its job that writes; the others wait until it has."""
    try:
        yield jax.process_index() == 0
    finally:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("written")


def beside(array: Any, rows: Any) -> Any:
    """``array [N, …]`` split over devices as the rows of a pytree ``[N, …]`` are."""
    first = next((leaf for leaf in jax.tree.leaves(rows) if isinstance(leaf, jax.Array)), None)
    if first is None or isinstance(first, core.Tracer) or not isinstance(first.sharding, NamedSharding):
        return array
    return jax.device_put(array, NamedSharding(first.sharding.mesh, PartitionSpec(*first.sharding.spec[:1])))


def everywhere(tree: Any) -> Any:
    """What every device is to have whole, such as what a round has picked."""
    return jax.lax.with_sharding_constraint(tree, PartitionSpec()) if _is_auto() else tree


def spread(tree: Any) -> Any:
    """A batch ``[B, …]``, of which every device has a part; where a mesh has several axes the compiler says."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {leaf.shape[0] % max(mesh.size, 1) for leaf in jax.tree.leaves(tree)}
    if not _is_auto() or len(mesh.axis_names) > 1 or sizes != {0}:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec(*mesh.axis_names))


def _is_auto() -> bool:
    return AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types


def in_blocks(array: Any) -> Any:
    """``[N, …]`` as ``[blocks, N / blocks, …]``, none of which is on several devices; one where no mesh is known."""
    num_blocks = math.gcd(array.shape[0], jax.sharding.get_abstract_mesh().size) if _is_auto() else 1
    return array.reshape(num_blocks, -1, *array.shape[1:])


def of_each_block(function: Callable[[Any], Any], blocks: Any) -> Any:
    """A function of one block after another ``[1, N / blocks, …]``, each on its device."""
    mesh = jax.sharding.get_abstract_mesh()
    if not _is_auto() or len(blocks) != mesh.size:
        return function(blocks)
    split = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, in_specs=split, out_specs=split, check_vma=False)(blocks)
