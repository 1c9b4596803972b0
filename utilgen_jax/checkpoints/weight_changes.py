"""Adapters that are no plain sum of low-rank terms: what they make of a layer's weight, as `peft` computes it.

DoRA: Liu et al. 2024, arXiv:2402.09353. LoHa, of Hadamard products: Hyeon-Woo et al. 2022, arXiv:2108.06098. LoKr, of
Kronecker products: Yeh et al. 2024, arXiv:2309.14859. All arrays have torch's layout.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from utilgen_jax.checkpoints import torch_names
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.sharding import to_host

# Names of factors in files -> names here; `alpha` is a number beside them.
LOHA_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOHA_CORES = ("hada_t1", "hada_t2")
LOKR_FACTORS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

PRODUCT_FACTORS = (*LOHA_FACTORS, *LOHA_CORES, *LOKR_FACTORS)


class WeightChange(Protocol):
    """What an adapter adds to a layer's weight."""

    def delta(self, weight: np.ndarray, strength: float) -> np.ndarray:
        """Returns what is added to a weight, float32 [out, in, ...], at a strength: 0 none, 1 as trained."""


@dataclasses.dataclass(frozen=True)
class DoraChange:
    """A low-rank term, and a length of each row of the sum.

    Attributes:
        product: up · down, float32 of the weight's shape.
        magnitude: the lengths, float32 [out].
        scale: alpha / rank.
    """

    product: np.ndarray
    magnitude: np.ndarray
    scale: float

    def delta(self, weight: np.ndarray, strength: float) -> np.ndarray:
        """See `WeightChange`; the strength is that of the low-rank term, as in peft."""
        changed = weight + strength * self.scale * self.product
        lengths = np.sqrt((changed**2).sum(axis=tuple(range(1, changed.ndim)), keepdims=True))
        return changed * self.magnitude.reshape(lengths.shape) / lengths - weight


@dataclasses.dataclass(frozen=True)
class ProductChange:
    """LoHa and LoKr.

    Attributes:
        factors: float32 arrays by their names in files.
        scale: alpha / rank.
    """

    factors: Mapping[str, np.ndarray]
    scale: float

    def delta(self, weight: np.ndarray, strength: float) -> np.ndarray:
        """See `WeightChange`."""
        return strength * self.scale * self._product().reshape(weight.shape)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises InputError if the factors do not make a weight of this shape."""
        try:
            product = self._product()
        except ValueError as error:  # NumPy's of matrices that do not match
            raise InputError(f"its factors do not fit each other ({error})") from error
        if product.size != math.prod(shape) or product.shape[:1] != shape[:1]:
            raise InputError(f"its factors make a weight {product.shape}, the layer has {shape}")

    def _product(self) -> np.ndarray:
        return _hadamard(self.factors) if "hada_w1_a" in self.factors else _kronecker(self.factors)

    @property
    def rank(self) -> int | None:
        """The rank that the shapes of the factors tell; None where all are full matrices."""
        names = ("hada_w1_b", "lokr_w1_b", "lokr_w2_b")
        return next((len(self.factors[name]) for name in names if name in self.factors), None)


def missing_factors(names: Sequence[str]) -> list[str]:
    """Returns the names of factors without which those of a LoHa or LoKr layer are not complete."""
    present = set(names)
    if present & {*LOHA_FACTORS, *LOHA_CORES}:
        needed = {*LOHA_FACTORS, *(LOHA_CORES if present & set(LOHA_CORES) else ())}
    else:
        needed = set()
        for side in ("lokr_w1", "lokr_w2"):
            needed |= {side} if side in present else {f"{side}_a", f"{side}_b"}
    return sorted(needed - present)


def _through_core(core: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Tucker's decomposition of a convolution: core [r, r, kh, kw], first [r, out], second [r, in]."""
    return np.einsum("ijkl,ip,jr->prkl", core, first, second)


def _hadamard(factors: Mapping[str, np.ndarray]) -> np.ndarray:
    sides = []
    for number in (1, 2):
        first, second = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
        core = factors.get(f"hada_t{number}")
        sides.append(first @ second if core is None else _through_core(core, first, second))
    return sides[0] * sides[1]


def _kronecker(factors: Mapping[str, np.ndarray]) -> np.ndarray:
    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    if "lokr_w2" in factors:
        second = factors["lokr_w2"]
    elif "lokr_t2" in factors:
        second = _through_core(factors["lokr_t2"], factors["lokr_w2_a"], factors["lokr_w2_b"])
    else:
        second = factors["lokr_w2_a"] @ factors["lokr_w2_b"]
    return np.kron(first.reshape(first.shape + (1,) * (second.ndim - 2)), second)


def apply_changes(
    params: Mapping[str, Any], changes: Mapping[tuple[str, ...], Sequence[tuple[WeightChange, float]]]
) -> dict[str, Any]:
    """Returns parameters with changed weights; each change is of the weight as it was before all of them.

    Args:
        params: parameters of the model; kernels keep their dtype.
        changes: by the linen path of the layer, each with its strength.
    """
    flat = flatten_dict(params)
    for path, changes_of_layer in changes.items():
        kernel = flat[*path, "kernel"]
        weight = np.asarray(torch_names.to_torch_layout(to_host(kernel), "kernel"), np.float32)
        changed = weight + sum(change.delta(weight, strength) for change, strength in changes_of_layer)
        changed = torch_names.to_linen_layout(changed, "kernel")
        flat[*path, "kernel"] = jnp.asarray(changed, kernel.dtype, device=kernel.sharding)
    return unflatten_dict(flat)
