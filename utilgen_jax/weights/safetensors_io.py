"""The safetensors files of one component, in and out: no pickle, one tensor at a time, nothing outside its folder."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which has none of its own)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from utilgen_jax.errors import InputError
from utilgen_jax.weights.checkpoint_folder import read_json

DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"

_KNOWN_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
# In order of preference: full precision first, then the half-precision variant, each whole or in shards. diffusers and
# transformers have put the variant into the index's name in both places.
_SUFFIXES = (
    "safetensors",
    "safetensors.index.json",
    "fp16.safetensors",
    "safetensors.index.fp16.json",
    "fp16.safetensors.index.json",
)


class TensorFiles:
    """All tensors of a component's folder, in a single safetensors file or in shards with an index.

    Only headers are read until a tensor is asked for.
    """

    def __init__(self, folder: Path):
        """Finds the files and lists their tensors; InputError if there are none or they are broken."""
        self._file_of = _files_by_name(folder)

    @property
    def names(self) -> list[str]:
        """The names of all tensors, as they stand in the files."""
        return list(self._file_of)

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, tensor), file by file, with the stored dtype (bfloat16 is ml_dtypes') and torch's layout."""
        for path in dict.fromkeys(self._file_of.values()):
            with _open(path) as file:
                for name in (name for name, its_path in self._file_of.items() if its_path == path):
                    dtype = file.get_slice(name).get_dtype()
                    if dtype not in _KNOWN_DTYPES:
                        raise InputError(f"{path}: {name} is stored as {dtype}, which is not supported; use float16")
                    yield name, file.get_tensor(name)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file that torch opens; the file appears whole or not at all.

    Args:
      path: the file; its folder exists.
      tensors: arrays by torch name, in torch's layout.
    """
    temporary = path.with_name(f".{path.name}.partial")
    # The format wants dense row-major bytes; transposed views are not.
    dense = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    save_file(dense, temporary, metadata={"format": "pt"})
    os.replace(temporary, path)


def _files_by_name(folder: Path) -> dict[str, Path]:
    for suffix in _SUFFIXES:
        for stem in (DIFFUSERS_STEM, TRANSFORMERS_STEM):
            path = folder / f"{stem}.{suffix}"
            if path.is_file():
                return _files_of_index(path) if suffix.endswith("json") else {name: path for name in _list(path)}
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise InputError(
            f"{folder}: holds only {', '.join(pickled)}, a pickle, which may run any code and is not read here; "
            "take a checkpoint with safetensors files, or load this one in torch and `save_pretrained` it"
        )
    expected = f"{DIFFUSERS_STEM}.safetensors or {TRANSFORMERS_STEM}.safetensors"
    raise InputError(f"{folder}: no weights; expected {expected} (pickled .bin files are neither read nor downloaded)")


def _files_of_index(index: Path) -> dict[str, Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no 'weight_map' from tensor to file; download the checkpoint again")
    for file in set(weight_map.values()):
        if not isinstance(file, str) or not file.endswith(".safetensors") or "\\" in file or Path(file).name != file:
            raise InputError(f"{index}: names the file {file!r}, which is no safetensors file of its own folder")
    files = {file: set(_list(index.parent / file)) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in files[file]:
            raise InputError(f"{index.parent / file}: lacks tensor {name} of {index.name}; download it again")
    return {name: index.parent / file for name, file in weight_map.items()}


def _list(path: Path) -> list[str]:
    with _open(path) as file:
        return list(file.keys())


def _open(path: Path):
    if not path.is_file():
        raise InputError(f"{path}: no such file; download the checkpoint again")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); download it again") from error
