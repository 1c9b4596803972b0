"""Chooses a component's weight files by name, in a local folder or in a listing of a repository."""

import re
from collections.abc import Collection
from pathlib import Path

DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# What transformers calls a pickle whose tensors it now keeps in `model.safetensors`.
_TRANSFORMERS_PICKLE = "pytorch_model"

_STEMS = (DIFFUSERS_STEM, TRANSFORMERS_STEM)
# For repositories without files in full precision.
_FALLBACK_VARIANT = "fp16"
# The variant of a shard may be before or after its number.
_SHARD = r"(?:\.(?P<before>\w+))?-\d+-of-\d+(?:\.(?P<after>\w+))?\.safetensors"


def pickle_advice(name: str) -> str:
    """What to do with a pickle of this path: two lines of Python that make a safetensors file of it."""
    path = Path(name)
    stem = TRANSFORMERS_STEM if path.stem == _TRANSFORMERS_PICKLE else path.stem
    target = str(path.with_name(f"{stem}.safetensors"))
    return (
        "a pickle, which can run arbitrary code and is not read. If you trust it, convert it where torch is:\n"
        f"  tensors = torch.load({str(path)!r}, map_location='cpu', weights_only=True)\n"
        f"  safetensors.torch.save_file(tensors.get('state_dict', tensors), {target!r})"
    )


def other_variants(names: Collection[str]) -> list[str]:
    """Returns the variants of the safetensors files that `choose_weight_files` chooses only by name, such as 'ema'."""
    found = {
        match[1]
        for name in names
        for stem in _STEMS
        if (match := re.fullmatch(rf"{re.escape(stem)}\.([\w-]+)(?:-\d+-of-\d+)?\.safetensors", name))
    }
    return sorted(found - {_FALLBACK_VARIANT})


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
