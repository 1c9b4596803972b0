"""Reads and writes LoRA files: `pytorch_lora_weights.safetensors` of diffusers, and files of peft and kohya."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from utilgen_jax.checkpoints import torch_names
from utilgen_jax.checkpoints.adapter_config import METADATA, PEFT_FILE, AdapterConfig, read_adapter_config
from utilgen_jax.checkpoints.lora_names import COMPONENTS, Layer, read_keys, without_text_prefix
from utilgen_jax.checkpoints.safetensors_io import TensorFiles, open_file, write_tensors
from utilgen_jax.checkpoints.weight_changes import (
    PRODUCT_FACTORS,
    DoraChange,
    ProductChange,
    WeightChange,
    missing_factors,
)
from utilgen_jax.checkpoints.weight_files import PICKLES
from utilgen_jax.errors import InputError
from utilgen_jax.models.lora import Lora, layer_shapes
from utilgen_jax.runtime.sharding import to_host

LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """What a file adds to a model, by component.

    Attributes:
        loras: plain low-rank terms, float32.
        changes: what DoRA, LoHa and LoKr make of weights, by the linen path of the layer.
    """

    loras: dict[str, Lora]
    changes: dict[str, dict[tuple[str, ...], WeightChange]]


def load_adapter(path: Path | str, params: Mapping[str, Any]) -> AdapterFile:
    """Reads a LoRA file for the layers of a model; see `lora_names` for the supported keys.

    A layer's alpha is its tensor `alpha`, or else that in the file's header (diffusers) or in `adapter_config.json`
    beside the file (peft), or else its rank, which gives the scale 1.

    Args:
        path: the file, or its folder if the file has diffusers' or peft's name or is the only safetensors file.
        params: {component: parameters}, as arrays or `jax.ShapeDtypeStruct`; only the UNet and the text encoder can
            have a LoRA.

    Raises:
        InputError: the file is missing; or keys are unknown, layers are missing in the model, or factors have wrong
            shapes (lists all).
    """
    path = _find(Path(path).expanduser())
    tensors, config = open_file(path), read_adapter_config(path)
    layers = {component: layer_shapes(params[component]) for component in COMPONENTS if component in params}
    found, problems = read_keys(tensors.shapes, layers)
    factors: dict[str, dict] = {}
    scales: dict[str, dict] = {}
    changes: dict[str, dict] = {}
    for layer, keys in found.items():
        scope, kernel_shape = layers[layer.component][layer.name]
        try:
            if not keys.keys().isdisjoint(PRODUCT_FACTORS):
                product = _read_product(tensors, keys, config, layer)
                product.check(torch_names.torch_shape(kernel_shape, "kernel"))
                changes.setdefault(layer.component, {})[scope] = product
                continue
            down, up = _read_factors(tensors, keys, kernel_shape)
            scale = _read_scale(tensors, keys, down.shape[-1], config, layer)
            if "magnitude" in keys:
                dora = _read_dora(tensors, keys["magnitude"], down, up, scale)
                changes.setdefault(layer.component, {})[scope] = dora
                continue
        except InputError as error:
            problems.append(f"{layer.component}.{layer.name}: {error}")
            continue
        its_factors = {(*scope, "down"): jnp.asarray(down), (*scope, "up"): jnp.asarray(up)}
        factors.setdefault(layer.component, {}).update(its_factors)
        scales.setdefault(layer.component, {})[*scope, "scale"] = jnp.float32(scale)
    if problems:
        lines = "\n  ".join(problems)
        raise InputError(f"{path}: this LoRA does not fit the model; is it of another Stable Diffusion?\n  {lines}")
    if not found:
        raise InputError(f"{path}: has no tensors")
    loras = {name: Lora(unflatten_dict(factors[name]), unflatten_dict(scales[name])) for name in factors}
    return AdapterFile(loras, changes)


def save_lora(path: Path | str, loras: Mapping[str, Lora]) -> Path:
    """Writes a file for torch's `pipeline.load_lora_weights`, with the alphas in its header.

    Args:
        path: the file, or (without the suffix `.safetensors`) the folder for `LORA_FILE`; folders are created.
        loras: LoRAs by component. All processes call this; the first one writes.

    Returns:
        The path of the file.
    """
    path = Path(path).expanduser()
    path = path if path.suffix == ".safetensors" else path / LORA_FILE
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, Any] = {}
    for component, lora in loras.items():
        # diffusers does not read 'lora_A' of a text encoder whose attention has none.
        down_key, up_key = (
            ("lora_A", "lora_B") if component == "unet" else ("lora_linear_layer.down", "lora_linear_layer.up")
        )
        factors, scales = torch_names.flatten(lora.factors), torch_names.flatten(lora.scales)
        ranks, alphas = {}, {}
        for (*scope, _), scale in scales.items():
            name = ".".join(scope)
            down, up = (
                torch_names.to_torch_layout(to_host(factors[*scope, factor]), "kernel") for factor in ("down", "up")
            )
            tensors[f"{component}.{name}.{down_key}.weight"] = down
            tensors[f"{component}.{name}.{up_key}.weight"] = up
            ranks[name] = len(down)
            alphas[name] = float(np.float32(to_host(scale)) * np.float32(len(down)))
        metadata |= {f"{component}.{field}": value for field, value in _peft_config(ranks, alphas).items()}
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, metadata={METADATA: json.dumps(metadata, indent=2, sort_keys=True)})
    return path


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    named = [path / name for name in (LORA_FILE, PEFT_FILE) if path / name in files]
    pickled = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    if named or len(files) == 1:
        return (named or files)[0]
    if not files and pickled:
        return pickled[0]  # to be refused with advice
    raise InputError(f"{path}: has {len(files)} safetensors files and none is called {LORA_FILE}; name the file")


def _read_factors(
    tensors: TensorFiles, keys: Mapping[str, str], kernel_shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads `down` and `up` in linen's layout, float32, with as many dimensions as the layer's kernel."""
    absent = [factor for factor in ("down", "up") if factor not in keys]
    if absent:
        raise InputError(f"its factor '{absent[0]}' is missing")
    *kernel, features = kernel_shape
    rank = max(tensors.shapes[keys["down"]][:1], default=0)
    factors = []
    for factor, shape in (("down", (*kernel, rank)), ("up", (*(1 for _ in kernel[:-1]), rank, features))):
        stored, needed = tensors.shapes[keys[factor]], torch_names.torch_shape(shape, "kernel")
        # A 1x1 convolution may be stored as a linear layer, or the reverse.
        if rank < 1 or _without_ones(stored) != _without_ones(needed):
            raise InputError(f"its factor '{factor}' has shape {stored}, the layer needs {needed}")
        array = tensors.read(keys[factor]).astype(np.float32)
        factors.append(torch_names.to_linen_layout(array, "kernel").reshape(shape))
    return factors[0], factors[1]


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _read_scale(tensors: TensorFiles, keys: Mapping[str, str], rank: int, config: AdapterConfig, layer: Layer) -> float:
    if "alpha" not in keys:
        return config.scale(layer, rank)
    tensor = tensors.read(keys["alpha"])
    if tensor.size != 1:
        raise InputError(f"its alpha has shape {tensor.shape}, not one number")
    return tensor.item() / rank


def _read_product(tensors: TensorFiles, keys: Mapping[str, str], config: AdapterConfig, layer: Layer) -> ProductChange:
    """Reads the factors of a LoHa or LoKr layer."""
    if "magnitude" in keys:
        raise InputError("DoRA of LoHa or LoKr is not supported")
    if absent := missing_factors(list(keys)):
        raise InputError(f"its factor '{absent[0]}' is missing")
    factors = {name: tensors.read(key).astype(np.float32) for name, key in keys.items() if name != "alpha"}
    change = ProductChange(factors, 1.0)
    if "alpha" in keys and change.rank is None:
        return change  # LyCORIS: full matrices have no alpha
    rank = change.rank or config.of_layer(layer, ("r",), "rank_pattern", 1)
    return dataclasses.replace(change, scale=_read_scale(tensors, keys, rank, config, layer))


def _read_dora(tensors: TensorFiles, key: str, down: np.ndarray, up: np.ndarray, scale: float) -> DoraChange:
    """Reads the lengths of a DoRA layer, whose factors have linen's layout."""
    magnitude, features = tensors.read(key).astype(np.float32), up.shape[-1]
    rows = {(features,), (features, 1), (features, 1, 1, 1), (1, features, 1, 1)}
    if magnitude.shape not in rows:
        raise InputError(f"its magnitude has shape {magnitude.shape}, the layer needs ({features},)")
    product = torch_names.to_torch_layout(down @ up.reshape(up.shape[-2:]), "kernel")
    return DoraChange(product, magnitude.reshape(-1), scale)


def _peft_config(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """Returns the arguments of `peft.LoraConfig` for the ranks and alphas of layers."""
    numbers = {name: int(alpha) if alpha.is_integer() else alpha for name, alpha in alphas.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, numbers))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {without_text_prefix(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {without_text_prefix(name): value for name, value in numbers.items() if value != alpha},
        "target_modules": sorted(without_text_prefix(name) for name in ranks),
    }
