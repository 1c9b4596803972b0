"""One component of a checkpoint (unet, vae ...), in and out: a folder with `config.json` and safetensors files."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from utilgen_jax.errors import InputError
from utilgen_jax.parallel import place, to_host
from utilgen_jax.weights import torch_names
from utilgen_jax.weights.checkpoint_folder import read_json
from utilgen_jax.weights.safetensors_io import DIFFUSERS_STEM, TRANSFORMERS_STEM, TensorFiles, write_tensors

ShardingFor = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]


def load_config(folder: Path | str, name: str = "config.json") -> dict:
    """Reads a component's `config.json`, or a scheduler's `scheduler_config.json`; InputError names the file."""
    return read_json(Path(folder) / name)


def load_component(
    folder: Path | str, dtype: jnp.dtype | None = None, sharding_for: ShardingFor | None = None
) -> tuple[dict, dict]:
    """Loads a component under linen names and layouts, tensor by tensor: the host holds about one tensor at a time.

    Reads `diffusion_pytorch_model` or `model`, `.safetensors` or a sharded index, or else their `.fp16.` variants.

    Args:
      folder: the component's folder, e.g. checkpoint / 'unet'.
      dtype: floating-point tensors are cast to it on the host; None keeps the stored one.
      sharding_for: called with the parameter's path ('down_blocks.0/conv/kernel') and its linen shape, returns where
        the tensor goes, each device getting its shard only; None, or no function, is the default device. See
        `parallel.sharding_for`.

    Returns:
      (config, params): the parsed `config.json`; nested dicts of jax arrays. A 1x1 convolution that the file stores as
      a linear layer, or the reverse, has the file's rank; `check_params` gives it the model's.

    Raises:
      InputError: a file is missing, broken, a pickle, or points out of its folder.
    """
    folder = Path(folder)
    config = load_config(folder)
    files = TensorFiles(folder)
    current = torch_names.current_names(files.names)
    params: dict = {}
    for name, tensor in files.read():
        if name not in current:
            continue
        *scopes, leaf = path = torch_names.to_linen_path(current[name], tensor.ndim)
        tensor = torch_names.to_linen_layout(tensor, leaf)
        if dtype is not None and jnp.issubdtype(tensor.dtype, jnp.floating):
            tensor = tensor.astype(dtype)
        sharding = sharding_for("/".join(path), tensor.shape) if sharding_for else None
        scope = params
        for piece in scopes:
            scope = scope.setdefault(piece, {})
        scope[leaf] = place(tensor, sharding)
    return config, params


def check_params(params: Mapping, expected: Mapping, where: Path | str) -> dict:
    """Fits loaded parameters to a model, or says everything that is wrong with them at once.

    Args:
      params: nested dicts of arrays, e.g. from `load_component`.
      expected: nested dicts of `jax.ShapeDtypeStruct`, from `jax.eval_shape` of the model's init.
      where: the folder, for the message.

    Returns:
      The arrays in the nesting of `expected`. Stable Diffusion 1 and 2 differ in whether a projection is a linear layer
      [in, out] or a 1x1 convolution [1, 1, in, out]; the same matrix, reshaped here to what the model has.

    Raises:
      InputError: lists all missing, unexpected and misshapen parameters under torch names, with torch's shapes.
    """
    given = {torch_names.to_torch_name(path): (path, leaf) for path, leaf in torch_names.flatten(params).items()}
    wanted = {torch_names.to_torch_name(path): (path, leaf) for path, leaf in torch_names.flatten(expected).items()}
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    fitted = []
    for name, (path, struct) in wanted.items():
        if name not in given:
            continue
        its_path, array = given[name]
        if _same_matrix(array.shape, struct.shape):
            fitted.append(array if array.shape == struct.shape else array.reshape(struct.shape))
        else:
            has = torch_names.torch_shape(array.shape, its_path[-1])
            problems.append(f"{name} has shape {has}, the model {torch_names.torch_shape(struct.shape, path[-1])}")
    if problems:
        lines = "\n  ".join(problems)
        raise InputError(f"{where}: the weights do not fit the model that its config describes:\n  {lines}")
    return jax.tree.unflatten(jax.tree.structure(expected), fitted)


def save_component(folder: Path | str, config: Mapping, params: Mapping, dtype: jnp.dtype | None = None) -> None:
    """Writes a component that torch's `from_pretrained` opens: `config.json` and one safetensors file.

    Args:
      folder: made if it does not exist; files of the same names are replaced, each at once.
      config: JSON-ready; decides the file's name, 'model' where it is transformers' (has a `model_type`), else
        'diffusion_pytorch_model'.
      params: nested dicts of arrays, linen names and layouts. With several processes all call this, the first writes.
      dtype: floating-point tensors are cast to it; None keeps each as it is.
    """
    tensors = {}
    for path, leaf in torch_names.flatten(params).items():
        tensor = to_host(leaf)
        if dtype is not None and jnp.issubdtype(tensor.dtype, jnp.floating):
            tensor = tensor.astype(dtype)
        tensors[torch_names.to_torch_name(path)] = torch_names.to_torch_layout(tensor, path[-1])
    if jax.process_index() != 0:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = TRANSFORMERS_STEM if "model_type" in config else DIFFUSERS_STEM
    write_tensors(folder / f"{stem}.safetensors", tensors)
    temporary = folder / ".config.json.partial"
    temporary.write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "config.json")


def _same_matrix(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    small, large = sorted((tuple(shape), tuple(other)), key=len)
    return small == large or (len(small) == 2 and large == (1, 1, *small))
