"""One component of a checkpoint (unet, vae ...), in and out: a folder with `config.json` and safetensors files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from utilgen_jax.checkpoints import torch_names
from utilgen_jax.checkpoints.checkpoint_folder import read_json
from utilgen_jax.checkpoints.safetensors_io import open_component, write_tensors
from utilgen_jax.checkpoints.weight_files import DIFFUSERS_STEM, TRANSFORMERS_STEM
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.sharding import place, to_host

ShardingFor = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]
# Where each tensor goes: by torch name, its linen path and linen shape.
Targets = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]


def load_config(folder: Path | str, name: str = "config.json") -> dict:
    """Reads a component's `config.json`, or a scheduler's `scheduler_config.json`; InputError names the file."""
    return read_json(Path(folder) / name)


def load_component(
    folder: Path | str,
    dtype: jnp.dtype | None = None,
    sharding_for: ShardingFor | None = None,
    expected: Mapping | None = None,
    variant: str | None = None,
) -> tuple[dict, dict]:
    """Loads a component under linen names and layouts, tensor by tensor: the host holds about one tensor at a time.

    Reads `diffusion_pytorch_model` or `model`, `.safetensors` or a sharded index, or else their `.fp16.` variants.

    Args:
        folder: the component's folder, e.g. checkpoint / 'unet'.
        dtype: floating-point tensors are cast to it on the host; None keeps the stored one.
        sharding_for: called with the parameter's path ('down_blocks.0/conv/kernel') and its linen shape, returns where
            the tensor goes, each device getting its shard only; None, or no function, is the default device. See
            `parallel.sharding_for`.
        expected: the model's parameters, nested dicts of `jax.ShapeDtypeStruct` from `jax.eval_shape` of its init,
            which the files are held against before any tensor is read. None takes what the files hold.
        variant: files to prefer, e.g. 'fp16'.

    Returns:
        (config, params): the parsed `config.json`; nested dicts of jax arrays, nested as `expected`. Stable Diffusion 1
        and 2 differ in whether a projection is a linear layer [in, out] or a 1x1 convolution [1, 1, in, out]: the same
        matrix, which gets the shape that is expected.

    Raises:
        InputError: a file is missing, broken, or a pickle, or points out of its folder; or lists all missing,
            unexpected and misshapen parameters under torch names, with torch's shapes.
    """
    folder = Path(folder)
    config = load_config(folder)
    files = open_component(folder, variant)
    stored_names = {name: stored for stored, name in torch_names.current_names(files.shapes).items()}
    shapes = {name: files.shapes[stored] for name, stored in stored_names.items()}
    if expected is None:
        targets = _own_targets(shapes)
    else:
        refusal = f"{folder}: the weights do not fit the model that its config describes"
        targets = checked_targets(shapes, torch_names.flatten(expected), refusal)
    params: dict = {}
    for name, stored in stored_names.items():
        path, shape = targets[name]
        tensor = torch_names.to_linen_layout(files.read(stored), path[-1]).reshape(shape)
        if dtype is not None and jnp.issubdtype(tensor.dtype, jnp.floating):
            tensor = tensor.astype(dtype)
        scope = params
        for piece in path[:-1]:
            scope = scope.setdefault(piece, {})
        # Waiting keeps the host from running ahead of the device with tensors that are still to be copied.
        scope[path[-1]] = place(
            tensor, sharding_for("/".join(path), shape) if sharding_for else None
        ).block_until_ready()
    return config, params


def save_component(folder: Path | str, config: Mapping, params: Mapping, dtype: jnp.dtype | None = None) -> None:
    """Writes a component that torch's `from_pretrained` opens: `config.json` and one safetensors file.

    Args:
        folder: made if it does not exist; files of the same names are replaced, each at once.
        config: JSON-ready; decides the file's name, 'model' where it is transformers' (has a `model_type`), else
            'diffusion_pytorch_model'.
        params: nested dicts of arrays, linen names and layouts. With several processes all call this, the first writes.
        dtype: floating-point tensors are cast to it; None keeps each as it is.
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


def _own_targets(shapes: Mapping[str, tuple[int, ...]]) -> Targets:
    targets = {}
    for name, shape in shapes.items():
        path = torch_names.to_linen_path(name, len(shape))
        targets[name] = path, torch_names.linen_shape(shape, path[-1])
    return targets


def checked_targets(
    shapes: Mapping[str, tuple[int, ...]], leaves: Mapping[tuple[str, ...], Any], refusal: str
) -> Targets:
    """Holds a checkpoint's tensors against a model's variables.

    Args:
        shapes: torch's shape of each tensor, by its torch name.
        leaves: of the model, by linen path: whatever has a shape.
        refusal: the first line of the error.

    Raises:
        InputError: lists all missing, unexpected and misshapen tensors under torch names, with torch's shapes.
    """
    wanted = {torch_names.to_torch_name(path): (path, tuple(leaf.shape)) for path, leaf in leaves.items()}
    problems = [f"missing {name}" for name in wanted if name not in shapes]
    problems += [f"unexpected {name}" for name in shapes if name not in wanted]
    for name, (path, shape) in wanted.items():
        if name not in shapes:
            continue
        model_shape = torch_names.torch_shape(shape, path[-1])
        if _matrix(shapes[name]) != _matrix(model_shape):
            problems.append(f"{name} has shape {shapes[name]}, the model {model_shape}")
    if problems:
        lines = "\n  ".join(problems)
        raise InputError(f"{refusal}:\n  {lines}")
    return wanted


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A torch shape, where it is a 1x1 convolution's that of the linear layer with the same matrix."""
    return shape[:2] if shape[2:] == (1, 1) else shape
