"""One mesh for everything: processes, devices, and where parameters and batches live on them.

The mesh has two axes. A batch is split over both; parameters are replicated over `data` and split over `fsdp`. With one
device both axes have size 1 and nothing is split. Axes are of type Auto: shardings of inputs are stated here, the
compiler derives the rest. Callers wrap their run in `with jax.set_mesh(mesh):`.
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from utilgen_jax.errors import InputError
from utilgen_jax.types import PyTree

Rule = tuple[str, Callable[[tuple[int, ...], Mesh], PartitionSpec]]

BATCH_AXES = ("data", "fsdp")
# Splitting a parameter smaller than this saves less memory than its extra messages cost.
MIN_ELEMENTS_TO_SPLIT = 2**16


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices of all processes, or those given, axes ('data', 'fsdp').

    Args:
        data: config.parallel.data, the number of copies of the parameters; -1 takes the devices left over.
        fsdp: config.parallel.fsdp, the number of devices that share one copy; -1 takes the devices left over.
        devices: None for all.

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = {"data": data, "fsdp": fsdp}
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise InputError(f"config.parallel.{name}={size}: must be positive, or -1 for all remaining devices")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 2:
        raise InputError("config.parallel.data and config.parallel.fsdp are both -1: only one can take what is left")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and count % fixed == 0:
        sizes[free[0]] = count // fixed
    if math.prod(sizes.values()) != count:
        raise InputError(
            f"config.parallel.data={data} and config.parallel.fsdp={fsdp} do not fit {count} device(s): "
            "their product must be the number of devices"
        )
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((sizes["data"], sizes["fsdp"]), BATCH_AXES, axis_types=axis_types, devices=devices)


def replicated(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Rule: a whole copy on every device."""
    del shape, mesh
    return PartitionSpec()


def largest_axis_over_fsdp(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Rule: splits the largest axis that `fsdp` divides, of large parameters; replicates the others."""
    size = mesh.shape["fsdp"]
    axes = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or not axes or math.prod(shape) < MIN_ELEMENTS_TO_SPLIT:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))


# (regular expression searched in the parameter's path, function of its shape); the first that matches decides.
DEFAULT_RULES: tuple[Rule, ...] = ((r"(^|/)(bias|scale)$", replicated), (r"", largest_axis_over_fsdp))


def sharding_for(mesh: Mesh, rules: Sequence[Rule] = DEFAULT_RULES) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """The rules as a function: path like 'down_blocks.0/conv/kernel', shape -> sharding; replicated if none matches."""

    def find(name: str, shape: tuple[int, ...]) -> NamedSharding:
        rule = next((rule for pattern, rule in rules if re.search(pattern, name)), replicated)
        return NamedSharding(mesh, rule(shape, mesh))

    return find


def param_shardings(shapes: PyTree, mesh: Mesh, rules: Sequence[Rule] = DEFAULT_RULES) -> PyTree:
    """Shardings for a pytree, e.g. as `out_shardings` of a jitted init, so that parameters are born sharded.

    Args:
        shapes: pytree of arrays or `jax.ShapeDtypeStruct`; parameters, or an optimiser state made of them.
        mesh: from `make_mesh`.
        rules: see `DEFAULT_RULES`.

    Returns:
        The same pytree of `NamedSharding`.
    """
    find = sharding_for(mesh, rules)

    def of_leaf(path, leaf) -> NamedSharding:
        return find(jax.tree_util.keystr(path, simple=True, separator="/"), np.shape(leaf))

    return jax.tree_util.tree_map_with_path(of_leaf, shapes)


def _few_optimizations() -> dict[str, Any] | None:
    """`jax.jit`'s `compiler_options` for a program that runs once, compiled for a CPU in less time.

    Random numbers, above all, take seconds to compile; the last place of some is another one then. A level that is set
    in `XLA_FLAGS` stays.
    """
    level = "xla_backend_optimization_level"
    is_set = level in os.environ.get("XLA_FLAGS", "")
    return {level: 1} if jax.default_backend() == "cpu" and not is_set else None


def init_sharded(init: Callable[..., PyTree], *arguments: Any) -> PyTree:
    """Parameters born in their shards on the mesh that `jax.set_mesh` set (on the default device where none is set).

    Args:
        init: pure function that makes them.
        *arguments: its arguments.
    """
    mesh = jax.sharding.get_mesh()
    options = _few_optimizations()
    if mesh.empty:
        return jax.jit(init, compiler_options=options)(*arguments)
    shardings = param_shardings(jax.eval_shape(init, *arguments), mesh)
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(*arguments)


def replicate(tree: PyTree) -> PyTree:
    """Whole copies of all arrays on every device of the mesh that `jax.set_mesh` set."""
    mesh = jax.sharding.get_mesh()
    sharding = None if mesh.empty else NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda array: place(array, sharding), tree)


def shard_params(params: PyTree, mesh: Mesh, rules: Sequence[Rule] = DEFAULT_RULES) -> PyTree:
    """Places parameters on the mesh by the rules. With several processes each passes the same values."""
    return jax.tree.map(place, params, param_shardings(params, mesh, rules))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Splits the first axis of every array over all devices.

    Args:
        batch: pytree of arrays [B, ...]; scalars and batches with fewer examples than devices are replicated. With
            several processes each passes the same whole batch, and keeps its part.
        mesh: from `make_mesh`.

    Raises:
        InputError: B is larger than the number of devices but not a multiple of it.
    """
    count = mesh.size

    def put(array):
        shape = np.shape(array)
        if not shape or shape[0] < count:
            return place(array, NamedSharding(mesh, PartitionSpec()))
        if shape[0] % count:
            raise InputError(f"a batch of {shape[0]} does not divide among {count} devices: make it a multiple of them")
        return place(array, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))

    return jax.tree.map(put, batch)


def split_batch(batch: PyTree) -> PyTree:
    """Inside jit: asks that every array's first axis be split over the mesh of `jax.set_mesh`, where it divides."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return batch

    def constrain(array: jax.Array) -> jax.Array:
        if array.shape[0] % mesh.size:
            return array
        return jax.lax.with_sharding_constraint(array, PartitionSpec(BATCH_AXES))

    return jax.tree.map(constrain, batch)


def batch_sharding(number: int) -> Sharding | None:
    """Of the first axis over the mesh of `jax.set_mesh`, where it divides a batch's number; None where none is set."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return None
    return NamedSharding(mesh, PartitionSpec() if number % mesh.size else PartitionSpec(BATCH_AXES))


def held_rows(sharding: Sharding | None, number: int) -> np.ndarray:
    """The rows of a batch that this process's devices hold, sorted."""
    if sharding is None or sharding.is_fully_addressable:
        return np.arange(number)
    indices = sharding.addressable_devices_indices_map((number,)).values()
    return np.unique(np.concatenate([np.arange(number)[index[0]] for index in indices if index is not None]))


def place_rows(rows: np.ndarray, held: np.ndarray, number: int, sharding: Sharding | None) -> jax.Array:
    """Puts a batch onto the devices of which each process has its own rows.

    Args:
        rows: [n, ...], those that this process's devices hold.
        held: their places in the batch, see `held_rows`, int [n].
        number: of rows of the batch.
        sharding: of the batch.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(rows, sharding)

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return rows[np.searchsorted(held, np.arange(number)[index[0]])]

    return jax.make_array_from_callback((number, *rows.shape[1:]), sharding, shard)


def place(array: np.ndarray | jax.Array, sharding: Sharding | None) -> jax.Array:
    """Puts an array that every process holds whole onto devices, each its shard; None is the default device."""
    spread = isinstance(array, jax.Array) and not array.is_fully_addressable
    if sharding is None or sharding.is_fully_addressable or spread:
        return jax.device_put(array, sharding)
    # `device_put` would first compare the values of all processes over the network.
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def own_rows(batch: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a batch that are this process's to write; each is one process's.

    Args:
        batch: [B, ...], a shard on each device, or whole in every process.

    Returns:
        The rows' numbers, sorted, int [n], and the rows [n, ...].
    """
    if not isinstance(batch, jax.Array) or batch.is_fully_addressable:
        mine = np.arange(len(batch) if jax.process_index() == 0 else 0)
        return mine, np.asarray(batch)[mine]
    owner = np.full(len(batch), jax.process_count())
    for device, index in batch.sharding.devices_indices_map(batch.shape).items():
        process: int = device.process_index  # type: ignore[attr-defined]
        owner[index[0]] = np.minimum(owner[index[0]], process)
    mine = np.flatnonzero(owner == jax.process_index())
    rows: dict[int, np.ndarray] = {}
    for shard in batch.addressable_shards:
        rows.update(zip(np.arange(len(batch))[shard.index[0]].tolist(), np.asarray(shard.data), strict=True))
    return mine, np.stack([rows[row] for row in mine.tolist()]) if len(mine) else np.zeros((0, *batch.shape[1:]))


def to_host(array: np.ndarray | jax.Array) -> np.ndarray:
    """The whole array in host memory; with several processes all of them call this, for the same array."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
