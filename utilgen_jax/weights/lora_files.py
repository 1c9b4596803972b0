"""LoRA files in and out: `pytorch_lora_weights.safetensors` as diffusers and peft write it, today's and older keys.

A tensor's key is the layer's name and which factor it is. The names that are understood, for one layer of the UNet and
one of the text encoder:

    unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight         diffusers today, peft
    unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.down.weight      diffusers before 0.27
    unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight      before 0.22
    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight         kohya's scripts
    text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_linear_layer.down.weight     diffusers today
    text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight                    before 0.22
    lora_te_text_model_encoder_layers_0_self_attn_out_proj.lora_down.weight                       kohya's scripts

The component may be left out, peft's `base_model.model.` may stand before it, and transformers 5 leaves out
`text_model.`. What scales a layer is a tensor `<layer>.alpha`; or in the file's header, `lora_adapter_metadata`; or, in
a folder of peft's, `adapter_config.json`; else its rank, which scales it by 1.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import safe_open

from utilgen_jax.errors import InputError
from utilgen_jax.models.lora import Lora, layer_shapes
from utilgen_jax.parallel import to_host
from utilgen_jax.weights import torch_names
from utilgen_jax.weights.checkpoint_folder import read_json
from utilgen_jax.weights.safetensors_io import TensorFiles, open_file, write_tensors

LORA_FILE = "pytorch_lora_weights.safetensors"
# The components that a LoRA may be of, and kohya's prefixes for them.
COMPONENTS = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_")}

_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_METADATA = "lora_adapter_metadata"
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+?)"
    r"(?:(?:\.lora_|\.lora\.|\.lora_linear_layer\.|_lora\.)(?P<factor>A|B|down|up)\.weight|\.(?P<alpha>alpha))"
)
_FACTORS = {"A": "down", "down": "down", "B": "up", "up": "up"}
_OLD_ATTENTION = {"to_out.0": "to_out", "q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_TEXT_PREFIX = "text_model."


def load_lora(path: Path | str, params: Mapping[str, Any]) -> dict[str, Lora]:
    """Reads a LoRA file and fits it to the model's layers.

    Args:
      path: the file; or its folder, where it is called as diffusers or peft call it, or is the only safetensors file.
      params: {component: its parameters}, as arrays or `jax.ShapeDtypeStruct`; other components than the UNet and the
        text encoder have no LoRA.

    Returns:
      {component: Lora}, float32, of the components that the file has factors for.

    Raises:
      InputError: there is no such file; or it holds keys that are not understood, layers that the model lacks, or
        factors that do not fit them: lists all.
    """
    path = _find(Path(path).expanduser())
    tensors, metadata = open_file(path), _read_metadata(path)
    layers = {name: layer_shapes(params[name]) for name in COMPONENTS if name in params}
    known = {
        spelling: (name, layer) for name in layers for layer in layers[name] for spelling in _spellings(name, layer)
    }
    problems, found = [], {}
    for key in tensors.shapes:
        match = _KEY.fullmatch(key)
        if match is None:
            problems.append(f"not understood: {key}")
        elif (layer := known.get(match["layer"].replace(".processor.", "."))) is None:
            problems.append(f"the model has no such layer: {key}")
        else:
            found.setdefault(layer, {})[match["alpha"] or _FACTORS[match["factor"]]] = key
    factors: dict[str, dict] = {name: {} for name, _ in found}
    scales: dict[str, dict] = {name: {} for name, _ in found}
    for (name, layer), keys in found.items():
        scope, shape = layers[name][layer]
        try:
            down, up = _read_factors(tensors, keys, shape)
            scale = _scale(tensors, keys, down.shape[-1], _settings(metadata, name), layer)
        except InputError as error:
            problems.append(f"{name}.{layer}: {error}")
            continue
        factors[name] |= {(*scope, "down"): jnp.asarray(down), (*scope, "up"): jnp.asarray(up)}
        scales[name][*scope, "scale"] = jnp.float32(scale)
    if problems:
        lines = "\n  ".join(problems)
        raise InputError(f"{path}: this LoRA does not fit the model; is it of another Stable Diffusion?\n  {lines}")
    if not found:
        raise InputError(f"{path}: holds no tensors")
    return {name: Lora(unflatten_dict(factors[name]), unflatten_dict(scales[name])) for name in factors}


def save_lora(path: Path | str, loras: Mapping[str, Lora]) -> Path:
    """Writes the file that torch's `pipeline.load_lora_weights` opens, alphas included.

    Args:
      path: the file, or (without `.safetensors` at its end) the folder for `LORA_FILE`; folders are made.
      loras: by component. With several processes all call this, the first writes.

    Returns:
      The file.
    """
    path = Path(path).expanduser()
    path = path if path.suffix == ".safetensors" else path / LORA_FILE
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, Any] = {}
    for name, lora in loras.items():
        # For the text encoder diffusers cannot read `lora_A` where no layer is of the attention.
        down_key, up_key = (
            ("lora_A", "lora_B") if name == "unet" else ("lora_linear_layer.down", "lora_linear_layer.up")
        )
        scales = torch_names.flatten(lora.scales)
        leaves = {leaf: to_host(array) for leaf, array in torch_names.flatten(lora.factors).items()}
        ranks, alphas = {}, {}
        for *scope, _ in scales:
            layer = ".".join(scope)
            down, up = (torch_names.to_torch_layout(leaves[*scope, factor], "kernel") for factor in ("down", "up"))
            tensors[f"{name}.{layer}.{down_key}.weight"], tensors[f"{name}.{layer}.{up_key}.weight"] = down, up
            ranks[layer] = len(down)
            alphas[layer] = float(np.float32(to_host(scales[*scope, "scale"])) * np.float32(len(down)))
        metadata |= {f"{name}.{field}": value for field, value in _peft_config(ranks, alphas).items()}
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, metadata={_METADATA: json.dumps(metadata, indent=2, sort_keys=True)})
    return path


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    named = [path / name for name in (LORA_FILE, _PEFT_FILE) if path / name in files]
    if not named and len(files) != 1:
        raise InputError(f"{path}: holds {len(files)} safetensors files and none is called {LORA_FILE}; name the file")
    return (named or files)[0]


def _read_metadata(path: Path) -> dict[str, Any]:
    """peft's configuration of the LoRA, keys perhaps led by the component; empty where the file has none."""
    config = path.with_name(_PEFT_CONFIG)
    if path.name == _PEFT_FILE and config.is_file():
        return read_json(config)
    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(_METADATA, "{}")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: its {_METADATA} is no JSON ({error}); save it again with diffusers") from error
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: its {_METADATA} is no JSON object; save it again with diffusers")
    return metadata


def _settings(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    return own or metadata


def _spellings(name: str, layer: str) -> Iterator[str]:
    """All names that files have for a layer."""
    layers = {layer, layer.removeprefix(_TEXT_PREFIX)}
    for today, old in _OLD_ATTENTION.items():
        layers |= {spelling.removesuffix(today) + old for spelling in layers if spelling.endswith(f".{today}")}
    for spelling in layers:
        yield from (spelling, f"{name}.{spelling}")
        yield from (prefix + spelling.replace(".", "_") for prefix in COMPONENTS[name])


def _read_factors(
    tensors: TensorFiles, keys: Mapping[str, str], kernel_shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads `down` and `up` in linen's layout, float32, of the rank that the kernel has: see `models.lora.Lora`."""
    absent = [factor for factor in ("down", "up") if factor not in keys]
    if absent:
        raise InputError(f"its factor '{absent[0]}' is missing")
    *kernel, features = kernel_shape
    rank = tensors.shapes[keys["down"]][0] if tensors.shapes[keys["down"]] else 0
    wanted = {"down": (*kernel, rank), "up": (*(1 for _ in kernel[:-1]), rank, features)}
    factors = []
    for factor, shape in wanted.items():
        # A 1x1 convolution may be stored as a linear layer, or the reverse.
        stored = tensors.shapes[keys[factor]]
        expected = torch_names.torch_shape(shape, "kernel")
        if _without_ones(stored) != _without_ones(expected) or rank < 1:
            raise InputError(f"its factor '{factor}' has shape {stored}, the layer needs {expected}")
        array = tensors.read(keys[factor]).astype(np.float32)
        factors.append(torch_names.to_linen_layout(array, "kernel").reshape(shape))
    return factors[0], factors[1]


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _scale(tensors: TensorFiles, keys: Mapping[str, str], rank: int, settings: Mapping[str, Any], layer: str) -> float:
    if "alpha" in keys:
        alpha = tensors.read(keys["alpha"])
        if alpha.size != 1:
            raise InputError(f"its alpha has shape {alpha.shape}, not one number")
        return float(alpha.reshape(())) / rank
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        # peft's rule; the second name is what the layer is called under transformers 5.
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in (layer, layer.removeprefix(_TEXT_PREFIX))):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _peft_config(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """The arguments of `peft.LoraConfig` for layers of these ranks and alphas."""

    def pattern(layer: str) -> str:
        # Without the prefix it is the end of the layer's name under every transformers.
        return layer.removeprefix(_TEXT_PREFIX) if layer.startswith(_TEXT_PREFIX) else f"^{layer}"

    numbers = {layer: int(alpha) if alpha.is_integer() else alpha for layer, alpha in alphas.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, numbers))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {pattern(layer): value for layer, value in ranks.items() if value != rank},
        "alpha_pattern": {pattern(layer): value for layer, value in numbers.items() if value != alpha},
        "target_modules": sorted(layer.removeprefix(_TEXT_PREFIX) for layer in ranks),
    }
