"""Chooses a component's weight files by name, in a local folder or in a listing of a repository."""

import re
from collections.abc import Collection

DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_ADVICE = (
    "a pickle, which can run arbitrary code and is not supported; use a checkpoint with safetensors files, or load "
    "this one in torch and save it with `save_pretrained` or safetensors.torch.save_file"
)

_STEMS = (DIFFUSERS_STEM, TRANSFORMERS_STEM)
# For repositories without files in full precision.
_FALLBACK_VARIANT = "fp16"
# The variant of a shard may be before or after its number.
_SHARD = r"(?:\.(?P<before>\w+))?-\d+-of-\d+(?:\.(?P<after>\w+))?\.safetensors"


def choose_weight_files(names: Collection[str], variant: str | None = None) -> list[str]:
    """Chooses the safetensors files of one component.

    Args:
        names: names of all files of the component.
        variant: preferred variant, e.g. 'fp16'. The fallbacks are the files without a variant, then fp16.

    Returns:
        One safetensors file; or an index (`.json`) and its shards, identified by name; or nothing.
    """
    for candidate in dict.fromkeys((variant or None, None, _FALLBACK_VARIANT)):
        for stem in _STEMS:
            single, *indices = _names_of(stem, candidate)
            if single in names:
                return [single]
            for index in indices:
                if index in names:
                    return [index, *(name for name in sorted(names) if _is_shard(name, stem, candidate))]
    return []


def has_variant(name: str, variant: str) -> bool:
    """Returns whether a file name, such as 'model.fp16.safetensors', has a variant."""
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
