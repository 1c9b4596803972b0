"""What a backward pass computes again rather than keep from the forward pass (Chen et al. 2016, arXiv:1604.06174)."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.layers import LINEAR_LAYER

# Name -> (the modules whose inside is computed again, which of its results are kept nevertheless).
GRADIENT_CHECKPOINTING: dict[str, tuple[str | None, Callable[..., Any] | None]] = {
    "none": (None, None),
    "products": ("block", jax.checkpoint_policies.save_only_these_names(LINEAR_LAYER)),
    "layers": ("layer", None),
    "blocks": ("block", None),
}


def check_gradient_checkpointing(name: str) -> None:
    """Raises InputError where `GRADIENT_CHECKPOINTING` has no such name."""
    if name not in GRADIENT_CHECKPOINTING:
        known = ", ".join(GRADIENT_CHECKPOINTING)
        raise InputError(f"gradient_checkpointing = {name!r} is unknown; known are {known}")


def checkpointed(module: type[nn.Module], kind: str, name: str) -> type[nn.Module]:
    """Returns the module class, which computes its inside again in the backward pass if the name says so of its kind.

    Args:
        module: the module class.
        kind: 'block' (all layers of a resolution) or 'layer' (a residual block, a transformer).
        name: a name in `GRADIENT_CHECKPOINTING`.
    """
    kind_of_name, policy = GRADIENT_CHECKPOINTING[name]
    return nn.remat(module, policy=policy) if kind == kind_of_name else module
