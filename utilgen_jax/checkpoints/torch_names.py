"""Converts parameter names and layouts between torch and linen, by the same rule for all models.

    down_blocks.0.resnets.1.conv1.weight   <->   ['down_blocks.0']['resnets.1']['conv1']['kernel']

Sub-modules have the same names as in torch; a number is joined with the piece before it, as in the linen scope
`name.0`. Only leaves change:

    torch             dims   linen       layout
    weight            4      kernel      OIHW -> HWIO
    weight            2      kernel      [out, in] -> [in, out]
    weight            2      embedding   unchanged, if the module's name ends in `embedding` (`nn.Embedding`)
    weight            1      scale       unchanged (norms)
    anything else            same name   unchanged
"""

import re
from collections.abc import Iterable, Sequence

import jax

_TO_LINEN_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}
_TO_TORCH_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
_WEIGHT_LEAVES = ("kernel", "embedding", "scale")

# Names of attention matrices in autoencoders of diffusers before 0.15.
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")
RENAMED_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# transformers 5 omits the prefix of a single CLIP tower, which older checkpoints have.
_CLIP_TOWERS = {"embeddings.token_embedding.weight": "text_model.", "embeddings.class_embedding": "vision_model."}
_CLIP_TOWER_PIECES = ("embeddings.", "encoder.", "final_layer_norm.", "pre_layrnorm.", "post_layernorm.")


def to_linen_path(name: str, ndim: int) -> tuple[str, ...]:
    """Returns the linen path of a torch parameter.

    Args:
        name: torch name, e.g. 'down_blocks.0.conv.weight'.
        ndim: number of dimensions of the tensor, which decides the name of a `weight`.

    Returns:
        Path into the linen parameters, e.g. ('down_blocks.0', 'conv', 'kernel').
    """
    *modules, leaf = name.split(".")
    path: list[str] = []
    for piece in modules:
        if piece.isdigit() and path:
            path[-1] += f".{piece}"
        else:
            path.append(piece)
    if leaf == "weight" and path:
        if ndim == 1:
            leaf = "scale"
        elif ndim == 2 and path[-1].endswith("embedding"):
            leaf = "embedding"
        elif ndim in _TO_LINEN_AXES:
            leaf = "kernel"
    return (*path, leaf)


def to_torch_name(path: Sequence[str]) -> str:
    """Returns the torch name of a linen path, the inverse of `to_linen_path` for any grouping into scopes."""
    *modules, leaf = path
    return ".".join([*modules, "weight" if leaf in _WEIGHT_LEAVES else leaf])


def to_linen_layout(array, leaf: str):
    """Reorders a tensor's axes from torch to linen; `leaf` is the last piece of its linen path."""
    return array.transpose(_TO_LINEN_AXES[array.ndim]) if leaf == "kernel" else array


def to_torch_layout(array, leaf: str):
    """Reorders a tensor's axes from linen to torch; the inverse of `to_linen_layout`."""
    return array.transpose(_TO_TORCH_AXES[array.ndim]) if leaf == "kernel" else array


def linen_shape(shape: Sequence[int], leaf: str) -> tuple[int, ...]:
    """Returns the linen shape of a torch tensor with this linen leaf."""
    return tuple(shape[axis] for axis in _TO_LINEN_AXES[len(shape)]) if leaf == "kernel" else tuple(shape)


def torch_shape(shape: Sequence[int], leaf: str) -> tuple[int, ...]:
    """Returns the torch shape of a linen parameter."""
    return tuple(shape[axis] for axis in _TO_TORCH_AXES[len(shape)]) if leaf == "kernel" else tuple(shape)


def current_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the current names of all tensors of a component.

    Renames the attention of old autoencoders, and adds the missing prefix `text_model.` or `vision_model.` of a CLIP
    tower. Omits buffers without weights (`position_ids`).

    Args:
        names: names of all tensors in the component's files.

    Returns:
        {name in the file: current torch name}.
    """
    names = list(names)
    prefix = next((prefix for marker, prefix in _CLIP_TOWERS.items() if marker in names), "")
    current = {}
    for name in names:
        if name.rsplit(".", 1)[-1] == "position_ids":
            continue
        renamed = _OLD_ATTENTION.sub(lambda match: f"{match[1]}.{RENAMED_ATTENTION[match[2]]}.{match[3]}", name)
        current[name] = prefix + renamed if renamed.startswith(_CLIP_TOWER_PIECES) and prefix else renamed
    return current


def flatten(tree) -> dict[tuple[str, ...], jax.Array]:
    """Flattens nested dicts of parameters to {linen path: leaf}, in jax's order of the leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(str(key.key) for key in path): leaf for path, leaf in leaves}
