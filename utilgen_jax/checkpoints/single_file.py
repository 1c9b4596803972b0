"""Checkpoints in one safetensors file with the names of CompVis' latent-diffusion, as web interfaces keep them.

The file holds the weights of UNet, autoencoder and text encoder, but neither their configs nor a tokenizer. Names:

    diffusers                                      latent-diffusion
    unet: down_blocks.0.resnets.1.conv1.weight     model.diffusion_model.input_blocks.2.0.in_layers.2.weight
    vae: decoder.mid_block.resnets.0.norm1.bias    first_stage_model.decoder.mid.block_1.norm1.bias
    text_encoder: text_model...                    cond_stage_model.transformer.text_model...   (Stable Diffusion 1.x)
                                                   cond_stage_model.model..., OpenCLIP's names  (2.x)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.checkpoints.safetensors_io import open_file
from utilgen_jax.errors import InputError

_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
_CLIP, _OPEN_CLIP, _SDXL = "cond_stage_model.transformer.", "cond_stage_model.model.", "conditioner.embedders."

_UNET_NAMES = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_LAYERS = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
# OpenCLIP keeps these three in one tensor, in this order.
_JOINED = ("q_proj", "k_proj", "v_proj")


class ComponentTensors:
    """The tensors of one component under diffusers' names; stands for `safetensors_io.TensorFiles`.

    Attributes:
        shapes: torch shapes by diffusers' names, and by their own the tensors that the component should not have.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]):
        """Use `SingleFile.component`."""
        self.shapes = dict(shapes)
        self.read = read


class SingleFile:
    """A checkpoint in one file.

    Attributes:
        path: the file.
        is_version_2: whether its text encoder is OpenCLIP's, as in Stable Diffusion 2.x.
    """

    def __init__(self, path: Path):
        """Opens the file; InputError if it is no such checkpoint, or of Stable Diffusion XL."""
        self.path = path
        self._files = open_file(path)
        names = self._files.shapes
        if any(name.startswith(_SDXL) for name in names):
            raise InputError(
                f"{path}: is of Stable Diffusion XL or its refiner, which is not supported; 1.x and 2.x are"
            )
        absent = [prefix for prefix in _PREFIXES.values() if not any(name.startswith(prefix) for name in names)]
        self.is_version_2 = any(name.startswith(_OPEN_CLIP) for name in names)
        if not self.is_version_2 and not any(name.startswith(_CLIP) for name in names):
            absent.append(_CLIP)
        if absent:
            raise InputError(
                f"{path}: has no tensors {', '.join(f'{prefix}*' for prefix in absent)}, so it is no whole checkpoint "
                "in latent-diffusion's names; one component, a LoRA or a learned token has a flag of its own"
            )

    def component(self, component: str, config: Mapping[str, Any], names: Iterable[str]) -> ComponentTensors:
        """Returns the tensors of a component.

        Args:
            component: 'unet', 'vae' or 'text_encoder'.
            config: its parsed `config.json`.
            names: the names of diffusers that are expected; those that the file lacks are left out.
        """
        stored, shapes = self._files.shapes, {}
        sources: dict[str, tuple[str, int | None]] = {}
        for name in names:
            source, part = self._source(component, name, config)
            if source in stored:
                shape = stored[source]
                shapes[name] = shape if part is None else (shape[0] // len(_JOINED), *shape[1:])
                sources[name] = source, part
        if component in _PREFIXES:
            used = {source for source, _ in sources.values()}
            shapes |= {
                name: shape
                for name, shape in stored.items()
                if name.startswith(_PREFIXES[component]) and name not in used
            }

        def read(name: str) -> np.ndarray:
            source, part = sources.get(name, (name, None))
            tensor = self._files.read(source)
            return tensor if part is None else np.split(tensor, len(_JOINED))[part]

        return ComponentTensors(shapes, read)

    def _source(self, component: str, name: str, config: Mapping[str, Any]) -> tuple[str, int | None]:
        """The name in the file, and which of the joined tensors it is, or None where they are apart."""
        if component == "unet":
            return _PREFIXES[component] + unet_name(name, config), None
        if component == "vae":
            return _PREFIXES[component] + vae_name(name, len(config["block_out_channels"])), None
        if self.is_version_2:
            source, part = open_clip_name(name)
            return _OPEN_CLIP + source, part
        source = _CLIP + name
        return source if source in self._files.shapes else _CLIP + name.removeprefix("text_model."), None


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """Returns latent-diffusion's name of a UNet's tensor."""
    layer, leaf = name.rsplit(".", 1)
    if layer in _UNET_NAMES:
        return f"{_UNET_NAMES[layer]}.{leaf}"
    for known, new in _UNET_NAMES.items():
        if layer.startswith(f"{known}."):
            rest = layer.removeprefix(f"{known}.")
            return f"{new}.{_UNET_LAYERS.get(rest, rest)}.{leaf}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", layer)
    if match is None:
        return name
    way, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    stride = config["layers_per_block"] + 1
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * stride}.0.op.{leaf}"
    if kind == "upsamplers":
        has_attention = config["up_block_types"][block].startswith("CrossAttn")
        return f"output_blocks.{(block + 1) * stride - 1}.{2 if has_attention else 1}.{rest}.{leaf}"
    place = f"input_blocks.{1 + block * stride + index}" if way == "down" else f"output_blocks.{block * stride + index}"
    return f"{place}.{0 if kind == 'resnets' else 1}.{_UNET_LAYERS.get(rest, rest)}.{leaf}"


def vae_name(name: str, num_blocks: int) -> str:
    """Returns latent-diffusion's name of an autoencoder's tensor."""
    layer, leaf = name.rsplit(".", 1)
    layer = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", layer)
    layer = layer.replace("mid_block.attentions.0", "mid.attn_1")
    layer = re.sub(r"down_blocks\.(\d+)", r"down.\1", layer)
    layer = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{num_blocks - 1 - int(match[1])}", layer)
    layer = re.sub(r"(down|up)samplers\.0", r"\1sample", layer).replace(".resnets.", ".block.")
    for new, old in _VAE_LAYERS.items():
        if layer.endswith(f".{new}"):
            layer = layer.removesuffix(new) + old
    return f"{layer}.{leaf}"


def open_clip_name(name: str) -> tuple[str, int | None]:
    """Returns OpenCLIP's name of a text encoder's tensor, and which of the joined tensors it is."""
    if name in _OPEN_CLIP_NAMES:
        return _OPEN_CLIP_NAMES[name], None
    match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return name, None
    block = f"transformer.resblocks.{match[1]}"
    projection = match[2].removeprefix("self_attn.")
    if projection in _JOINED:
        return f"{block}.attn.in_proj_{match[3]}", _JOINED.index(projection)
    return f"{block}.{_OPEN_CLIP_LAYERS.get(match[2], match[2])}.{match[3]}", None
