"""What the keys of LoRA files mean: diffusers', peft's and kohya's names of the same layers.

A key is a layer's name and which of its factors the tensor is. The styles, by example of one layer:

    unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight          peft, diffusers
    unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.down.weight       diffusers' training scripts
    unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight        the same, long ago
    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight           kohya's scripts
    text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_linear_layer.down.weight       diffusers
    text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight             the same, long ago
    lora_te_text_model_encoder_layers_0_self_attn_out_proj.lora_down.weight                kohya's scripts

The component's name may be missing in a file of one model, where peft has `base_model.model.`; and transformers 5
leaves out `text_model.`. Beside the factors there may be a number `<layer>.alpha`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

# The components that a LoRA may be of, and what kohya's scripts and diffusers' converter to their style call them.
COMPONENTS = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_")}

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+?)"
    r"(?:(?:\.lora_|\.lora\.|\.lora_linear_layer\.|_lora\.)(?P<factor>A|B|down|up)\.weight|\.(?P<alpha>alpha))"
)
_PARTS = {"A": "down", "down": "down", "B": "up", "up": "up", "alpha": "alpha"}
_OLD_ATTENTION = {"to_out.0": "to_out", "q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_TEXT_PREFIX = "text_model."


class Layer(NamedTuple):
    """A layer of a component, by the torch name that it has under transformers 4 and here."""

    component: str
    name: str


def without_text_prefix(name: str) -> str:
    """A layer's name under transformers 5; with every transformers, the end of its name."""
    return name.removeprefix(_TEXT_PREFIX)


def read_keys(
    keys: Iterable[str], layers: Mapping[str, Iterable[str]]
) -> tuple[dict[Layer, dict[str, str]], list[str]]:
    """Finds out what the tensors of a LoRA file are.

    Args:
        keys: of all tensors in the file.
        layers: {component: torch's names of its layers}.

    Returns:
        {layer: {'down', 'up' or 'alpha': key}}, and a line for each key that is not understood or whose layer is not
        among `layers`.
    """
    known = {
        spelling: Layer(component, name)
        for component, names in layers.items()
        for name in names
        for spelling in _spellings(component, name)
    }
    found: dict[Layer, dict[str, str]] = {}
    problems = []
    for key in keys:
        match = _KEY.fullmatch(key)
        layer = match and known.get(match["layer"].replace(".processor.", "."))
        if match is None:
            problems.append(f"not understood: {key}")
        elif layer is None:
            problems.append(f"the model has no such layer: {key}")
        else:
            found.setdefault(layer, {})[_PARTS[match["factor"] or match["alpha"]]] = key
    return found, problems


def _spellings(component: str, name: str) -> Iterator[str]:
    names = {name, without_text_prefix(name)}
    for today, old in _OLD_ATTENTION.items():
        names |= {spelling.removesuffix(today) + old for spelling in names if spelling.endswith(f".{today}")}
    for spelling in names:
        yield from (spelling, f"{component}.{spelling}")
        yield from (prefix + spelling.replace(".", "_") for prefix in COMPONENTS[component])
