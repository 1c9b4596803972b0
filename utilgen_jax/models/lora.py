"""Low-rank adaptation: small trainable factors beside frozen layers (LoRA, Hu et al. 2021, arXiv:2106.09685).

A layer y = x W + b with factors of rank r computes y = x W + b + (alpha / r) (x down) up. For a convolution `down` has
the layer's kernel size, stride and padding, and `up` is 1×1. This is `peft`'s definition; `checkpoints.lora_files`
exchanges factors with it. The layers are in `models.layers`; they cast the factors to their dtype.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from utilgen_jax.errors import InputError
from utilgen_jax.models.layers import FACTORS, SCALES

# name -> regular expression, searched in torch's module names of the UNet and CLIP
TARGETS = {
    "attention": r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$",
    "feed_forward": r"\.(ff\.net\.0\.proj|ff\.net\.2|mlp\.fc1|mlp\.fc2)$",
    "convolutions": r"\.(conv|conv1|conv2|conv_shortcut)$",
}


@struct.dataclass
class Lora:
    """The low-rank terms of a model, nested like its parameters ('down_blocks.0', ..., 'to_q').

    Attributes:
        factors: trainable factors, float32: {'down': [in, r], 'up': [r, out]} of a dense layer,
            {'down': [kh, kw, in, r], 'up': [1, 1, r, out]} of a convolution.
        scales: constant {'scale': alpha / r}, float32 scalar, of each layer.
    """

    factors: Mapping[str, Any]
    scales: Mapping[str, Any]

    def variables(self) -> dict[str, Mapping[str, Any]]:
        """Returns the variable collections to pass to `module.apply` beside 'params'."""
        return {FACTORS: self.factors, SCALES: self.scales}


def init_lora(
    params: Mapping[str, Any],
    key: jax.Array,
    *,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = ("attention",),
) -> Lora:
    """Initialises factors whose product is zero, so that the model's outputs do not change.

    `down` is Kaiming-uniform as in `peft`, U(-1/√n, 1/√n) with n inputs to each output; `up` is zero. Do not jit this:
    compiling the draws of a hundred layers takes longer than running them.

    Args:
        params: parameters of the model, as arrays or `jax.ShapeDtypeStruct`.
        key: PRNG key.
        rank: rank r of all layers.
        alpha: numerator of the scale alpha / rank; None for `rank`.
        targets: keys of `TARGETS`, or regular expressions to search in torch's module names, such as
            r'attn2\\.to_[kv]$' or r'^conv_in$'.

    Raises:
        InputError: the rank is not positive, or a target is not a regular expression or matches no layer.
    """
    if rank < 1:
        raise InputError(f"LoRA: rank={rank} must be at least 1")
    shapes = layer_shapes(params)
    factors, scales = {}, {}
    for index, name in enumerate(match_targets(list(shapes), targets)):
        path, shape = shapes[name]
        *kernel, features = shape
        bound = 1 / math.sqrt(math.prod(kernel))
        down = jax.random.uniform(jax.random.fold_in(key, index), (*kernel, rank), minval=-bound, maxval=bound)
        factors[*path, "down"] = down
        factors[*path, "up"] = jnp.zeros((*(1 for _ in kernel[:-1]), rank, features))
        scales[*path, "scale"] = jnp.float32((rank if alpha is None else alpha) / rank)
    return Lora(unflatten_dict(factors), unflatten_dict(scales))


def layer_shapes(params: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Returns the layers that can have a low-rank term: {torch's module name: (linen path, shape of the kernel)}."""
    flat = flatten_dict(params)
    return {".".join(path[:-1]): (path[:-1], leaf.shape) for path, leaf in flat.items() if path[-1] == "kernel"}


def match_targets(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Returns the module names that match any target, in their order; see `init_lora`."""
    matched: set[str] = set()
    for target in targets:
        try:
            pattern = re.compile(TARGETS.get(target, target))
        except re.error as error:
            raise InputError(f"LoRA: target {target!r} is not a regular expression ({error})") from error
        found = [name for name in names if pattern.search(name)]
        if not found:
            near = difflib.get_close_matches(target, [*TARGETS, *names], n=3, cutoff=0.0)
            raise InputError(
                f"LoRA: target {target!r} matches no layer; targets are {', '.join(TARGETS)}, or regular expressions "
                f"over module names, of which the nearest are {', '.join(near)}"
            )
        matched.update(found)
    if not matched:
        raise InputError(f"LoRA: no targets are given; choose some of {', '.join(TARGETS)}")
    return [name for name in names if name in matched]


def with_scale(lora: Lora, lora_scale: float | jax.Array) -> Lora:
    """Multiplies the effect of a LoRA by `lora_scale`: 0 disables it, 1 keeps it."""
    return Lora(factors=lora.factors, scales=jax.tree.map(lambda scale: scale * lora_scale, lora.scales))


def sum_of_loras(loras: Sequence[Lora]) -> Lora:
    """Returns a LoRA whose effect is the sum of the effects of several; its ranks are the sums of theirs."""
    if len(loras) == 1:
        return loras[0]
    parts: dict[tuple[str, ...], list[tuple[jax.Array, jax.Array, jax.Array]]] = {}
    for lora in loras:
        factors = flatten_dict(lora.factors)
        for (*path, _), scale in flatten_dict(lora.scales).items():
            parts.setdefault(tuple(path), []).append((factors[*path, "down"], factors[*path, "up"], scale))
    factors, scales = {}, {}
    for path, terms in parts.items():
        factors[*path, "down"] = jnp.concatenate([down for down, _, _ in terms], axis=-1)
        factors[*path, "up"] = jnp.concatenate([scale * up for _, up, scale in terms], axis=-2)
        scales[*path, "scale"] = jnp.float32(1.0)
    return Lora(unflatten_dict(factors), unflatten_dict(scales))


def merge_lora(params: Mapping[str, Any], lora: Lora) -> dict[str, Any]:
    """Adds the low-rank terms to the weights: the model has the same outputs without the LoRA.

    Args:
        params: parameters of the model; kernels keep their dtype (below float32, small terms may be rounded away).
        lora: LoRA of the model.

    Returns:
        New parameters with the same structure.

    Raises:
        InputError: the model lacks a layer of the LoRA.
    """
    return _add_products(params, lora, 1.0)


def unmerge_lora(params: Mapping[str, Any], lora: Lora) -> dict[str, Any]:
    """Subtracts the low-rank terms from the weights: the inverse of `merge_lora`, up to rounding."""
    return _add_products(params, lora, -1.0)


def _add_products(params: Mapping[str, Any], lora: Lora, sign: float) -> dict[str, Any]:
    flat, factors = flatten_dict(params), flatten_dict(lora.factors)
    for (*path, _), scale in flatten_dict(lora.scales).items():
        if (*path, "kernel") not in flat:
            raise InputError(f"LoRA: the model has no layer {'.'.join(path)}; it is a LoRA of another model")
        kernel, down, up = flat[*path, "kernel"], factors[*path, "down"], factors[*path, "up"]
        # The default precision of GPUs and TPUs would round the factors first.
        product = jnp.matmul(down, up.reshape(up.shape[-2:]), precision="highest")
        flat[*path, "kernel"] = (kernel + sign * scale * product).astype(kernel.dtype)
    return unflatten_dict(flat)
