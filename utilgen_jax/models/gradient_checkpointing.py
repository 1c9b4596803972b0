"""Gradient checkpointing: recomputation in the backward pass to save memory (Chen et al. 2016, arXiv:1604.06174)."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.layers import LINEAR_LAYER

# name -> (kind of the modules to recompute, policy of the intermediate results to keep)
GRADIENT_CHECKPOINTING: dict[str, tuple[str | None, Callable[..., Any] | None]] = {
    "none": (None, None),
    "products": ("block", jax.checkpoint_policies.save_only_these_names(LINEAR_LAYER)),
    "layers": ("layer", None),
    "blocks": ("block", None),
}


def check_gradient_checkpointing(name: str) -> None:
    """Raises InputError for a name that is not in `GRADIENT_CHECKPOINTING`."""
    if name not in GRADIENT_CHECKPOINTING:
        known = ", ".join(GRADIENT_CHECKPOINTING)
        raise InputError(f"gradient_checkpointing = {name!r} is unknown; known are {known}")


def checkpointed(module: type[nn.Module], kind: str, name: str) -> type[nn.Module]:
    """Returns the module class, with recomputation in the backward pass if the name applies to its kind.

    Args:
        module: module class.
        kind: 'block' (all layers of a resolution) or 'layer' (a residual block, a transformer).
        name: key of `GRADIENT_CHECKPOINTING`.
    """
    kind_of_name, policy = GRADIENT_CHECKPOINTING[name]
    return nn.remat(module, policy=policy) if kind == kind_of_name else module
