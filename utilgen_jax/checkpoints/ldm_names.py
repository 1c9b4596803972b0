"""Names of tensors in CompVis' latent-diffusion and in OpenCLIP, of those in diffusers and transformers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

_UNET_NAMES = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
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
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
# OpenCLIP keeps these three in one tensor, in this order.
JOINED = ("q_proj", "k_proj", "v_proj")


@dataclasses.dataclass(frozen=True)
class UNetLayout:
    """What the numbers in a UNet's names depend on.

    Attributes:
        layers_per_block: residual blocks of each block on the way down.
        attention_blocks: the blocks on the way up that have transformers.
    """

    layers_per_block: int
    attention_blocks: frozenset[int]

    @classmethod
    def of(cls, names: Iterable[str]) -> UNetLayout:
        """The layout of a UNet with layers of these names, diffusers'."""
        resnets, with_attention = {0}, set()
        for name in names:
            if match := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name):
                resnets.add(int(match[1]))
            elif match := re.match(r"up_blocks\.(\d+)\.attentions\.", name):
                with_attention.add(int(match[1]))
        return cls(max(resnets) + 1, frozenset(with_attention))


def unet_name(name: str, layout: UNetLayout) -> str:
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
    stride = layout.layers_per_block + 1
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * stride}.0.op.{leaf}"
    if kind == "upsamplers":
        last = 2 if block in layout.attention_blocks else 1
        return f"output_blocks.{(block + 1) * stride - 1}.{last}.{rest}.{leaf}"
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
    if projection in JOINED:
        return f"{block}.attn.in_proj_{match[3]}", JOINED.index(projection)
    return f"{block}.{_OPEN_CLIP_LAYERS.get(match[2], match[2])}.{match[3]}", None
