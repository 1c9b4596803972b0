"""The protocols: how many synthetic images a real one gets, and what the classifier is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Of each group a comparison follows one. `real+synthetic` leaves the mix of a batch to the config.
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "5x": {"pool.images_per_shot": 5},  # UtilGen's (arXiv 2510.24262)
    "50x": {"pool.images_per_shot": 50},
}
_TRAINING_IMAGES: Mapping[str, Mapping[str, Any]] = {
    "real+synthetic": {},
    "synthetic_only": {"classifier.synthetic_fraction": 1.0},
}

# Name -> the fields that it sets, by dotted path.
PROTOCOLS: Mapping[str, Mapping[str, Any]] = {**_SIZES, **_TRAINING_IMAGES}
HELP: Mapping[str, str] = {
    "5x": "five synthetic images for each real image of a class",
    "50x": "fifty",
    "real+synthetic": "the classifier is trained on both",
    "synthetic_only": "on the synthetic images alone",
}


def conflicts(names: Sequence[str]) -> list[str]:
    """Says which parts of a variant exclude each other: protocols of a group, a protocol's size and `images=n`."""
    named = [[name for name in dict.fromkeys(names) if name in group] for group in (_SIZES, _TRAINING_IMAGES)]
    problems = [f"{' and '.join(found)}: these protocols exclude each other; name one" for found in named if found[1:]]
    images = [name for name in names if name.startswith("images=")]
    if named[0] and images:
        problems.append(f"{images[0]} and {named[0][0]}: both set the number of synthetic images; name one")
    return problems
