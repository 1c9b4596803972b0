"""A run's state on disk: orbax behind three functions.

A checkpoint folder holds one saved tree. A new one is complete before the old one is removed, so that a run that is
stopped in the middle of `save` finds the old one. Of several processes all call the same function: the first one writes
the whole tree, and each reads, from the same folder or from a copy of its own. Works on buckets too (`gs://...`).
"""

import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import named_in_errors
from utilgen_jax.runtime.sharding import to_host
from utilgen_jax.types import PyTree

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

_ROOM = 2**17  # bytes for files beside the arrays
_WAY_OUT = "remove the folder to start afresh"


def save(folder: Path | str, tree: PyTree) -> None:
    """Saves a tree in a folder, in place of what was saved there before; the first process returns when it is there.

    Args:
        folder: made if it does not exist.
        tree: pytree of arrays (any sharding), numbers and typed PRNG keys.

    Raises:
        InputError: it cannot be written; what was saved before stays.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    tree = jax.tree.map(_unwrap_key, tree)
    if jax.process_count() > 1:
        tree = jax.tree.map(lambda leaf: to_host(leaf) if isinstance(leaf, jax.Array) else leaf, tree)
        if jax.process_index() > 0:
            return
    _check_room(folder, tree)
    try:
        with named_in_errors(Path(folder)), _without_logs():
            epath.Path(folder).mkdir(parents=True, exist_ok=True)
            with _manager(folder) as manager:
                manager.save(_next(manager.latest_step()), args=ocp.args.StandardSave(tree))
    except OSError:
        raise
    except Exception as error:  # Without space the storage layer below orbax raises errors of its own.
        raise InputError(f"{folder}: cannot be written; make room, then run the command again. {error}") from error


@contextmanager
def _without_logs() -> Iterator[None]:
    """Keeps orbax from writing the tracebacks of its threads: what fails in them is raised too."""
    logger = logging.getLogger("absl")

    def nothing(record: logging.LogRecord) -> bool:  # its own for each save: threads may save at once
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def restore(folder: Path | str, like: PyTree) -> PyTree:
    """Reads the saved tree.

    Args:
        folder: what `save` was given.
        like: a tree of the same structure: arrays, or `jax.ShapeDtypeStruct` (cheaper: the initial state need not
            exist). What is restored has their shapes, dtypes and shardings; without a sharding it is on the default
            device.

    Raises:
        InputError: nothing is saved there, or it is damaged, or has another structure or other shapes.
    """
    import orbax.checkpoint as ocp

    if not exists(folder):
        raise InputError(f"{folder}: holds no checkpoint")
    targets = jax.tree.map(_target, like)
    try:
        with _manager(folder) as manager:
            step = manager.latest_step()
            # Told before orbax reads: where it fails, threads of its own complain later, of a loop that is closed.
            if difference := _difference(manager.item_metadata(step), targets):
                raise InputError(f"{folder}: {difference}; the checkpoint is of another training; {_WAY_OUT}")
            restored = manager.restore(step, args=ocp.args.StandardRestore(targets))
    except InputError:
        raise
    except Exception as error:  # A damaged file raises whatever the storage layer below orbax raises.
        raise InputError(f"{folder}: the checkpoint cannot be restored; {_WAY_OUT}. {error}") from error
    return jax.tree.map(_rewrap_key, like, restored)


def exists(folder: Path | str) -> bool:
    """Whether a complete checkpoint was saved in the folder."""
    from etils import epath

    if not epath.Path(folder).is_dir():
        return False
    with _manager(folder) as manager:
        return manager.latest_step() is not None


def _check_room(folder: Path | str, tree: PyTree) -> None:
    """Raises InputError where a disk has no room for a tree: orbax would tell of it for each of the arrays."""
    if "://" in str(folder):
        return
    path = Path(folder).absolute()
    found = next(each for each in (path, *path.parents) if each.exists())
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes")) + _ROOM
    if (free := shutil.disk_usage(found).free) < needed:
        sizes = f"{needed / 2**20:.1f} MiB needed, {free / 2**20:.1f} free"
        raise InputError(f"{folder}: the disk is full ({sizes}); make room, then run the command again")


def _manager(folder: Path | str) -> "ocp.CheckpointManager":
    # Imported here: orbax takes half a second, and only runs that save need it.
    import orbax.checkpoint as ocp

    location = str(folder) if "://" in str(folder) else os.path.abspath(folder)
    # Synchronous: what is saved is small, and a caller that goes on may rely on its being there.
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    if jax.process_count() > 1:  # each works for itself
        number = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(number, {number}, barrier_sync_key_prefix=f"process_{number}")
        options = dataclasses.replace(options, create=False, multiprocessing_options=alone)
    return ocp.CheckpointManager(location, options=options, item_handlers=ocp.StandardCheckpointHandler())


def _difference(saved: PyTree, targets: PyTree) -> str:
    """What is other in a saved tree, by orbax's description of it, than in the tree that is asked for; "": nothing."""
    before, now = _shapes(saved), _shapes(targets)
    for name in sorted({*before, *now}):
        if name not in now:
            return f"it holds {name}, which is not asked for"
        if name not in before:
            return f"it lacks {name}"
        if before[name] != now[name]:
            return f"its {name} has shape {before[name]}, not {now[name]}"
    return ""


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of a tree's leaves by their names; orbax describes tuples and classes as lists and dicts."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="."): jnp.shape(leaf) for path, leaf in leaves}


def _next(latest: int | None) -> int:
    return 0 if latest is None else latest + 1


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _unwrap_key(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _target(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return _unwrap_key(leaf)
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    sharding = data.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def _rewrap_key(like: Any, leaf: Any) -> Any:
    if not _is_key(like):
        return leaf
    implementations: list[Any] = []
    # `like` may be a struct, which has no values to ask; while traced, both kinds tell their implementation.
    jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(leaf, impl=implementations[0])
