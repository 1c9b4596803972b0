"""Reads and writes a component of a checkpoint (unet, vae, ...): a folder with `config.json` and safetensors files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.checkpoints import torch_names
from utilgen_jax.checkpoints.checkpoint_folder import read_json
from utilgen_jax.checkpoints.safetensors_io import TensorFiles, open_component, write_tensors
from utilgen_jax.checkpoints.single_file import ComponentTensors, SingleFile
from utilgen_jax.checkpoints.weight_files import DIFFUSERS_STEM, TRANSFORMERS_STEM
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.sharding import place, to_host

_MOST_LISTED = 40  # mismatches in a message

ShardingFor = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]
# torch name -> (linen path, linen shape)
Targets = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]


def load_config(folder: Path | str, name: str = "config.json") -> dict:
    """Reads a component's `config.json`, or a scheduler's `scheduler_config.json`."""
    return read_json(Path(folder) / name)


def load_component(
    folder: Path | str,
    dtype: jnp.dtype | None = None,
    sharding_for: ShardingFor | None = None,
    expected: Mapping | None = None,
    variant: str | None = None,
    single_file: SingleFile | None = None,
) -> tuple[dict, dict]:
    """Loads a component with linen names and layouts, one tensor at a time to save host memory.

    Reads `diffusion_pytorch_model` or `model`, as `.safetensors` or a sharded index, or else the `.fp16.` variants.

    Args:
        folder: folder of the component, e.g. checkpoint / 'unet'.
        dtype: dtype to cast floating-point tensors to, on the host; None keeps the stored dtypes.
        sharding_for: (path such as 'down_blocks.0/conv/kernel', linen shape) -> sharding of a parameter. None, as
            argument or result, is the default device. See `sharding.sharding_for`.
        expected: the model's parameters, nested dicts of `jax.ShapeDtypeStruct`, which are compared with the files
            before tensors are read. None accepts all tensors of the files.
        variant: preferred files, e.g. 'fp16'.
        single_file: file to take the weights from instead; needs `expected`.

    Returns:
        (config, params): the parsed `config.json`; jax arrays, nested as `expected`. Projections are linear layers
        [in, out] in some Stable Diffusion checkpoints and 1x1 convolutions [1, 1, in, out] in others; they are reshaped
        to the expected shape.

    Raises:
        InputError: a file is missing, damaged, pickled, or outside the folder; a number is not finite; or parameters
            are missing, unexpected or have wrong shapes (lists them with torch names and shapes).
    """
    folder = Path(folder)
    config = load_config(folder)
    files: TensorFiles | ComponentTensors = (
        open_component(folder, variant)
        if single_file is None or expected is None
        else single_file.component(folder.name, config, map(torch_names.to_torch_name, torch_names.flatten(expected)))
    )
    where = folder if single_file is None else single_file.path
    stored_names = {name: stored for stored, name in torch_names.current_names(files.shapes).items()}
    shapes = {name: files.shapes[stored] for name, stored in stored_names.items()}
    if expected is None:
        targets = _own_targets(shapes)
    else:
        whose = "" if single_file is None else f" of {folder.name}"
        refusal = f"{where}: the weights{whose} do not fit the model that its config describes"
        targets = checked_targets(shapes, torch_names.flatten(expected), refusal)
    params: dict = {}
    for name, stored in stored_names.items():
        path, shape = targets[name]
        tensor = torch_names.to_linen_layout(files.read(stored), path[-1]).reshape(shape)
        if jnp.issubdtype(tensor.dtype, jnp.floating):
            _check_finite(
                tensor, f"{folder}: {stored} holds NaN or infinity: the file is damaged, or its training failed"
            )
            if dtype is not None and tensor.dtype != dtype:
                with np.errstate(over="ignore"):
                    tensor = tensor.astype(dtype)
                _check_finite(
                    tensor, f"{folder}: {stored} has numbers that {jnp.dtype(dtype)} cannot hold; use float32"
                )
        scope = params
        for piece in path[:-1]:
            scope = scope.setdefault(piece, {})
        # Waiting bounds the host memory of tensors that are not copied to the device yet.
        scope[path[-1]] = place(
            tensor, sharding_for("/".join(path), shape) if sharding_for else None
        ).block_until_ready()
    return config, params


def check_component(folder: Path | str, expected: Mapping, variant: str | None = None) -> None:
    """Compares the names and shapes of a component's weights with a model's, without reading the weights.

    Args:
        folder, expected, variant: see `load_component`.

    Raises:
        InputError: see `load_component`, as far as headers tell.
    """
    files = open_component(Path(folder), variant)
    shapes = {name: files.shapes[stored] for stored, name in torch_names.current_names(files.shapes).items()}
    refusal = f"{folder}: the weights do not fit the model that its config describes"
    checked_targets(shapes, torch_names.flatten(expected), refusal)


def save_component(folder: Path | str, config: Mapping, params: Mapping, dtype: jnp.dtype | None = None) -> None:
    """Writes a component for torch's `from_pretrained`: `config.json` and a safetensors file.

    Args:
        folder: output folder, created if missing; files of the same names are replaced atomically.
        config: JSON-ready config. The file is called 'model' if the config is transformers' (has a `model_type`), else
            'diffusion_pytorch_model'.
        params: nested dicts of arrays with linen names and layouts. All processes call this; the first one writes.
        dtype: dtype to cast floating-point tensors to; None keeps their dtypes.
    """
    tensors = {
        torch_names.to_torch_name(path): torch_names.to_torch_layout(to_host(leaf), path[-1])
        for path, leaf in torch_names.flatten(params).items()
    }
    if jax.process_index() != 0:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = TRANSFORMERS_STEM if "model_type" in config else DIFFUSERS_STEM
    write_tensors(folder / f"{stem}.safetensors", tensors, dtype)
    write_text(folder / "config.json", json.dumps(dict(config), indent=2, sort_keys=True) + "\n")


def _check_finite(tensor: np.ndarray, message: str) -> None:
    # As integers, infinity and NaN are the largest of either sign; this takes no memory, and a tenth of the time of
    # `isfinite`, of which ml_dtypes' is slower still.
    bits = 8 * tensor.dtype.itemsize
    infinity = int(np.array(np.inf, tensor.dtype).view(f"u{tensor.dtype.itemsize}"))
    positive = tensor.view(f"i{tensor.dtype.itemsize}").max(initial=0)
    negative = tensor.view(f"u{tensor.dtype.itemsize}").max(initial=0)
    if positive >= infinity or negative >= infinity + 2 ** (bits - 1):
        raise InputError(message)


def _own_targets(shapes: Mapping[str, tuple[int, ...]]) -> Targets:
    targets = {}
    for name, shape in shapes.items():
        path = torch_names.to_linen_path(name, len(shape))
        targets[name] = path, torch_names.linen_shape(shape, path[-1])
    return targets


def checked_targets(
    shapes: Mapping[str, tuple[int, ...]], leaves: Mapping[tuple[str, ...], Any], refusal: str
) -> Targets:
    """Compares a checkpoint's tensors with a model's variables, and returns the targets.

    Args:
        shapes: torch shapes by torch name.
        leaves: the model's arrays, or their shapes, by linen path.
        refusal: first line of the error message.

    Raises:
        InputError: tensors are missing, unexpected or have wrong shapes; lists them with torch names and shapes.
    """
    targets = {torch_names.to_torch_name(path): (path, tuple(leaf.shape)) for path, leaf in leaves.items()}
    if prefix := _common_prefix(shapes, targets):
        raise InputError(
            f"{refusal}:\n  the names of its tensors begin with {prefix!r}, as a wrapper of torch has saved them; save "
            f"the model that it wraps, or take the prefix from the names"
        )
    problems = [f"missing {name}" for name in targets if name not in shapes]
    problems += [f"unexpected {name}" for name in shapes if name not in targets]
    for name, (path, shape) in targets.items():
        if name not in shapes:
            continue
        model_shape = torch_names.torch_shape(shape, path[-1])
        if _matrix(shapes[name]) != _matrix(model_shape):
            problems.append(f"{name} has shape {shapes[name]}, the model {model_shape}")
    if problems:
        more = [f"... and {len(problems) - _MOST_LISTED} more"] if len(problems) > _MOST_LISTED else []
        lines = "\n  ".join([*problems[:_MOST_LISTED], *more])
        raise InputError(f"{refusal}:\n  {lines}")
    return targets


def _common_prefix(shapes: Mapping[str, Any], targets: Mapping[str, Any]) -> str:
    """The prefix without which the names would be the model's, such as `_orig_mod.` or `module.`; '' if none is."""
    first = next(iter(shapes), "")
    pieces = first.split(".")
    for number in range(1, len(pieces)):
        prefix = ".".join(pieces[:number]) + "."
        if first.removeprefix(prefix) in targets and all(name.startswith(prefix) for name in shapes):
            return "" if first in targets else prefix
    return ""


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a torch shape, with that of a 1x1 convolution reduced to a linear layer's."""
    return shape[:2] if shape[2:] == (1, 1) else shape
