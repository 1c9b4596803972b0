"""Turns a torch state dict into linen variables and back, for the parity tests of the models.

Written apart from `utilgen_jax.checkpoints`, so that these tests do not lean on the code that loads checkpoints.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch

_TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}


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


def variables_from_torch(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters and the frozen batch statistics, if any, that a torch state dict names."""

    def split(tree):
        params, statistics = {}, {}
        for key, value in tree.items():
            if isinstance(value, dict):
                params[key], statistics[key] = split(value)
            else:
                (statistics if key.startswith("running") else params)[key] = value
        return params, {key: value for key, value in statistics.items() if not isinstance(value, dict) or value}

    params, statistics = split(params_from_torch(state))
    return {"params": params, "batch_stats": statistics} if statistics else {"params": params}


def random_tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Every tensor different from its initial value: scales of one and biases of zero would hide one left out."""
    values = rng.normal(size=shape) / (np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 4)
    if len(shape) == 1 and name.endswith(("weight", "running_var")):
        values = rng.uniform(0.5, 1.5, shape)
    return torch.tensor(values, dtype=torch.float32)


def to_torch(images: np.ndarray) -> torch.Tensor:
    """Images [B, H, W, C] as torch has them."""
    return torch.tensor(images.transpose(0, 3, 1, 2))


def torch_state(module: Any, images: np.ndarray) -> dict[str, torch.Tensor]:
    """Random tensors under torch names for a linen module's variables."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    state: dict[str, torch.Tensor] = {}
    for collection in shapes.values():
        for name, shape in flat_shapes(collection).items():
            name = name.replace(".kernel", ".weight").replace(".scale", ".weight")
            shape = tuple(shape[axis] for axis in _TORCH_AXES.get(len(shape), range(len(shape))))
            state[name] = random_tensor(rng, name, shape)
    return state


def random_images(size: int) -> np.ndarray:
    """Two RGB images, float32."""
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
