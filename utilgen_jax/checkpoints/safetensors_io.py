"""Reads and writes safetensors files of a component, one tensor at a time; no pickles, no files outside its folder."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from utilgen_jax.checkpoints.checkpoint_folder import read_json
from utilgen_jax.checkpoints.weight_files import (
    DIFFUSERS_STEM,
    PICKLES,
    TRANSFORMERS_STEM,
    choose_weight_files,
    other_variants,
    pickle_advice,
)
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import replace_file

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),  # not in NumPy
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# A file begins with the length of its header, little-endian, in so many bytes.
_LENGTH_BYTES = 8


class _Entry(NamedTuple):
    """Location of a tensor: file, offset, dtype and torch shape."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class TensorFiles:
    """The tensors of safetensors files; headers are read at once, tensors on request.

    Attributes:
        shapes: torch shapes by tensor name, in file order.
    """

    def __init__(self, entries: Mapping[str, _Entry]):
        """Use `open_component` or `open_file`."""
        self._entries = entries
        self.shapes = {name: entry.shape for name, entry in entries.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns a copy of a tensor in the stored dtype (bfloat16 of ml_dtypes) and torch's layout."""
        path, offset, dtype, shape = self._entries[name]
        if dtype not in _DTYPES:
            raise InputError(f"{path}: {name} is stored as {dtype}, which is not supported; use float16")
        # No memory map, whose pages would count as memory of this process.
        return np.fromfile(path, _DTYPES[dtype], math.prod(shape), offset=offset).reshape(shape)


def open_component(folder: Path, variant: str | None = None) -> TensorFiles:
    """Opens a component's single safetensors file, or its shards and their index; see `choose_weight_files`.

    Raises:
        InputError: there are no safetensors files, or they are damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = {path.name for path in folder.iterdir()}
    files = choose_weight_files(names, variant)
    if files:
        path = folder / files[0]
        return TensorFiles(_read_index(path) if path.suffix == ".json" else _read_header(path))
    pickled = sorted(name for name in names if Path(name).suffix in PICKLES)
    if pickled:
        raise InputError(f"{folder / pickled[0]}: {pickle_advice(str(folder / pickled[0]))}")
    if variants := other_variants(names):
        raise InputError(
            f"{folder}: has weights of the variant {' and '.join(map(repr, variants))} alone; choose it by "
            f"--variant={variants[0]}, or leave the variant out of the file's name"
        )
    expected = f"{DIFFUSERS_STEM}.safetensors or {TRANSFORMERS_STEM}.safetensors"
    raise InputError(f"{folder}: no weights; expected {expected} (pickled .bin files are neither read nor downloaded)")


def open_file(path: Path) -> TensorFiles:
    """Opens a safetensors file; InputError if it is missing, damaged or a pickle."""
    if path.suffix in PICKLES:
        raise InputError(f"{path}: {pickle_advice(str(path))}")
    return TensorFiles(_read_header(path))


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], dtype: Any = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file for torch, atomically.

    Args:
        path: the file; its folder must exist.
        tensors: arrays by torch name, in torch's layout; views are copied one at a time.
        dtype: dtype to cast floating-point tensors to; None keeps their dtypes.
        metadata: strings for the file's header.
    """
    # Wide dtypes first, so that all tensors are aligned.
    plan = {name: _stored_dtype(tensor, dtype) for name, tensor in tensors.items()}
    names = sorted(plan, key=lambda name: (-plan[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].size * plan[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPE_NAMES[plan[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with replace_file(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name in names:
            np.ascontiguousarray(tensors[name], plan[name]).tofile(file)


def _stored_dtype(tensor: np.ndarray, dtype: Any) -> np.dtype:
    return np.dtype(dtype) if dtype is not None and jnp.issubdtype(tensor.dtype, jnp.floating) else tensor.dtype


def _read_index(index: Path) -> dict[str, _Entry]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no 'weight_map' from tensor to file; download the checkpoint again")
    for file in set(weight_map.values()):
        if not isinstance(file, str) or not file.endswith(".safetensors") or "\\" in file or Path(file).name != file:
            raise InputError(f"{index}: names the file {file!r}, which is not a safetensors file in this folder")
    shards = {file: _read_header(index.parent / file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise InputError(f"{index.parent / file}: lacks tensor {name} of {index.name}; download it again")
    # Shard by shard, for sequential reads.
    return {name: shard[name] for file, shard in shards.items() for name in shard if weight_map.get(name) == file}


def _read_header(path: Path) -> dict[str, _Entry]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; download the checkpoint again")
    try:
        # The library checks the header and the length of the file, but has no API for offsets.
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a complete safetensors file ({error}); download it again") from error
    header.pop("__metadata__", None)
    start = _LENGTH_BYTES + length
    entries = {
        name: _Entry(path, start + its["data_offsets"][0], its["dtype"], tuple(its["shape"]))
        for name, its in header.items()
    }
    return dict(sorted(entries.items(), key=lambda item: item[1].offset))
