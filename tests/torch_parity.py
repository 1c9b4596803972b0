"""Turns a torch state dict into a linen parameter tree, for the parity tests of the models.

Written apart from `utilgen_jax.weights`, so that these tests do not lean on the code that loads checkpoints.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def scope_path(name: str) -> list[str]:
    """Splits a torch name at its dots, a digit staying with the piece before it: 'a.0.b' -> ['a.0', 'b']."""
    path: list[str] = []
    for piece in name.split("."):
        if piece.isdigit() and path:
            path[-1] += "." + piece
        else:
            path.append(piece)
    return path


def params_from_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested linen parameters (float32 numpy leaves) that a torch state dict names.

    Integer buffers (CLIP's `position_ids`) are no parameters and are left out.
    """
    params: dict[str, Any] = {}
    for name, tensor in state_dict.items():
        if not tensor.is_floating_point():
            continue
        *scopes, leaf = scope_path(name)
        value = tensor.detach().to("cpu").float().numpy()
        if leaf == "weight":
            if scopes[-1].endswith("_embedding") and value.ndim == 2:
                leaf = "embedding"
            elif value.ndim == 4:
                leaf, value = "kernel", value.transpose(2, 3, 1, 0)
            elif value.ndim == 2:
                leaf, value = "kernel", value.T
            else:
                leaf = "scale"
        node = params
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[leaf] = np.ascontiguousarray(value)
    return params


def flat_shapes(params: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Returns {dotted linen name: shape}; two trees with equal flat shapes hold exactly the same parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            shapes |= flat_shapes(value, f"{prefix}{key}.")
        else:
            shapes[prefix + key] = tuple(value.shape)
    return shapes


def relative_error(actual: Any, expected: Any) -> float:
    """Returns max |actual - expected| / max |expected|, computed in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
