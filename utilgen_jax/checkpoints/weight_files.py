"""Which files hold a component's weights, chosen by name alone: of a folder here, or of a repository's listing."""

import re
from collections.abc import Collection

DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_WAY_OUT = (
    "a pickle, which may run any code and is not read here; take a checkpoint with safetensors files, or load this one "
    "in torch and save it with safetensors: `save_pretrained`, or safetensors.torch.save_file"
)

_STEMS = (DIFFUSERS_STEM, TRANSFORMERS_STEM)
# Where there is no file in full precision, as in many repositories for inference.
_FALLBACK_VARIANT = "fp16"
# diffusers and transformers have put a shard's variant before and after its number.
_SHARD = r"(?:\.(?P<before>\w+))?-\d+-of-\d+(?:\.(?P<after>\w+))?\.safetensors"


def choose_weight_files(names: Collection[str], variant: str | None = None) -> list[str]:
    """Chooses the safetensors files of one component.

    Args:
        names: the names of all files of the component's folder.
        variant: e.g. 'fp16', taken where it is there; else, or for None, the files without a variant, else fp16's.

    Returns:
        One safetensors file; or an index (`.json`) and then its shards, as far as their names tell; or nothing.
    """
    for wanted in dict.fromkeys((variant or None, None, _FALLBACK_VARIANT)):
        for stem in _STEMS:
            single, *indices = _names_of(stem, wanted)
            if single in names:
                return [single]
            for index in indices:
                if index in names:
                    return [index, *(name for name in sorted(names) if _is_shard(name, stem, wanted))]
    return []


def has_variant(name: str, variant: str) -> bool:
    """Whether a file's name, such as 'model.fp16.safetensors', is of a variant."""
    return re.search(rf"\.{re.escape(variant)}(\.|-\d)", name) is not None


def _names_of(stem: str, variant: str | None) -> tuple[str, ...]:
    if variant is None:
        return f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    return (
        f"{stem}.{variant}.safetensors",
        f"{stem}.safetensors.index.{variant}.json",
        f"{stem}.{variant}.safetensors.index.json",
    )


def _is_shard(name: str, stem: str, variant: str | None) -> bool:
    match = re.fullmatch(re.escape(stem) + _SHARD, name)
    return match is not None and (match["before"] or match["after"]) == variant
