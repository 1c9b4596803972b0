"""Parses the keys of LoRA files in the styles of diffusers, peft and kohya.

A key is the name of a layer and of one of its factors. Examples of all styles:

    unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight          peft, diffusers
    unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.down.weight       diffusers' training scripts
    unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight        diffusers, old
    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight           kohya's scripts
    text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_linear_layer.down.weight       diffusers
    text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight             diffusers, old
    lora_te_text_model_encoder_layers_0_self_attn_out_proj.lora_down.weight                kohya's scripts
    text_encoder_2.text_model.encoder.layers.0.self_attn.out_proj.lora_linear_layer.down.weight     diffusers, for XL
    lora_te2_text_model_encoder_layers_0_self_attn_out_proj.lora_down.weight               kohya's scripts, for XL
    lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_out_0.lora_down.weight       kohya's scripts, for XL
    base_model.model.mid_block.attentions.0.proj_in.hada_w1_a                              peft's LoHa; LoKr: lokr_w1
    lora_unet_mid_block_attentions_0_proj_in.hada_w1_a                                     LyCORIS'

Files of a single component may omit its name; peft's have `base_model.model.` instead, and those without a name are of
the first text encoder. transformers 5 omits `text_model.`. kohya's scripts name the layers of XL's UNet as
latent-diffusion does. A layer may also have a scalar `<layer>.alpha`, and with DoRA a vector `lora_magnitude_vector` or
`dora_scale`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from utilgen_jax.checkpoints.ldm_names import UNetLayout, unet_name

# Components that can have a LoRA, with their prefixes in kohya's style.
COMPONENTS = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+?)"
    r"(?:(?:\.lora_|\.lora\.|\.lora_linear_layer\.|_lora\.)(?P<factor>A|B|down|up)\.weight|"
    r"\.(?P<magnitude>dora_scale|lora_magnitude_vector)(?:\.weight)?|"
    r"\.(?P<other>alpha|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)))"
)
_FACTORS = {"A": "down", "down": "down", "B": "up", "up": "up"}
_OLD_ATTENTION = {"to_out.0": "to_out", "q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_TEXT_PREFIX = "text_model."


class Layer(NamedTuple):
    """A layer of a component, by its torch name in transformers 4."""

    component: str
    name: str


def without_text_prefix(name: str) -> str:
    """Returns a layer's name in transformers 5, which is a suffix of its name in transformers 4."""
    return name.removeprefix(_TEXT_PREFIX)


def read_keys(
    keys: Iterable[str], layers: Mapping[str, Iterable[str]]
) -> tuple[dict[Layer, dict[str, str]], list[str]]:
    """Matches the keys of a LoRA file with layers.

    Args:
        keys: keys of all tensors in the file.
        layers: {component: torch names of its layers}.

    Returns:
        {layer: {'down', 'up', 'alpha', 'magnitude', or the name of a factor of LoHa or LoKr: key}}, and a message for
        each unknown key or layer.
    """
    known: dict[str, Layer] = {}
    for component, names in layers.items():
        names = list(names)
        layout = UNetLayout.of(names) if component == "unet" else None
        for name in names:
            for spelling in _spellings(component, name, layout):
                known.setdefault(spelling, Layer(component, name))
    found: dict[Layer, dict[str, str]] = {}
    problems = []
    for key in keys:
        match = _KEY.fullmatch(key)
        layer = match and known.get(match["layer"].replace(".processor.", "."))
        if match is None:
            problems.append(f"unknown key: {key}")
        elif layer is None:
            problems.append(f"the model has no such layer: {key}")
        else:
            part = _FACTORS[match["factor"]] if match["factor"] else match["other"] or "magnitude"
            found.setdefault(layer, {})[part] = key
    return found, problems


def _spellings(component: str, name: str, layout: UNetLayout | None) -> Iterator[str]:
    names = {name, without_text_prefix(name)}
    for today, old in _OLD_ATTENTION.items():
        names |= {spelling.removesuffix(today) + old for spelling in names if spelling.endswith(f".{today}")}
    for spelling in names:
        yield from (spelling, f"{component}.{spelling}")
        yield from (prefix + spelling.replace(".", "_") for prefix in COMPONENTS[component])
    if layout is not None:
        ldm_name = unet_name(f"{name}.weight", layout).removesuffix(".weight")
        yield "lora_unet_" + ldm_name.replace(".", "_")
