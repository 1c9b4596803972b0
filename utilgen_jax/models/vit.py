"""Vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929) with timm's names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.dot_product_attention import dot_product_attention

_EPSILON = 1e-6
_truncated_normal = nn.initializers.truncated_normal(0.02)


class PatchEmbed(nn.Module):
    """Patches to tokens: [B, S, S, C] -> [B, (S / patch_size)², width], in row-major order."""

    width: int
    patch_size: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the tokens."""
        side = (self.patch_size, self.patch_size)
        patches = nn.Conv(self.width, side, side, "VALID", dtype=self.dtype, name="proj")(images)
        return patches.reshape(len(images), -1, self.width)


class Attention(nn.Module):
    """Multi-head self-attention with a joint projection to queries, keys and values: [B, T, D] -> [B, T, D]."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the attention's output, before the residual sum."""
        batch, length, width = tokens.shape
        projected = nn.Dense(3 * width, dtype=self.dtype, kernel_init=_truncated_normal, name="qkv")(tokens)
        query, key, value = jnp.moveaxis(projected.reshape(batch, length, 3, self.num_heads, -1), 2, 0)
        attended = dot_product_attention(query, key, value).reshape(tokens.shape)
        return nn.Dense(width, dtype=self.dtype, kernel_init=_truncated_normal, name="proj")(attended)


class MLP(nn.Module):
    """Two dense layers with the exact GELU and 4 D hidden units: [B, T, D] -> [B, T, D]."""

    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the output, before the residual sum."""
        width = tokens.shape[-1]
        hidden = nn.Dense(4 * width, dtype=self.dtype, kernel_init=_truncated_normal, name="fc1")(tokens)
        hidden = nn.gelu(hidden, approximate=False)
        return nn.Dense(width, dtype=self.dtype, kernel_init=_truncated_normal, name="fc2")(hidden)


class Block(nn.Module):
    """Attention and MLP, each with a pre layer norm and a residual connection: [B, T, D] -> [B, T, D]."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the block's output."""
        normed = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm1")(tokens)
        tokens = tokens + Attention(self.num_heads, self.dtype, name="attn")(normed)
        normed = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm2")(tokens)
        return tokens + MLP(self.dtype, name="mlp")(normed)


class VisionTransformer(nn.Module):
    """Vision transformer; the image size of `init` decides the number of position embeddings.

    Attributes:
        num_classes: K.
        patch_size: side of a patch in pixels; must divide the image's.
        width: width of the tokens, D.
        depth: number of blocks.
        num_heads: number of attention heads; must divide `width`.
        dtype: dtype of activations; parameters and logits are float32.
    """

    num_classes: int
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits float32 [B, K] of images float [B, H, W, C]."""
        tokens = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")(images)
        class_token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.width))
        class_tokens = jnp.broadcast_to(class_token, (len(images), 1, self.width)).astype(self.dtype)
        tokens = jnp.concatenate([class_tokens, tokens], axis=1)
        positions = self.param("pos_embed", _truncated_normal, (1, *tokens.shape[1:]))
        tokens = tokens + positions.astype(self.dtype)
        for index in range(self.depth):
            tokens = Block(self.num_heads, self.dtype, name=f"blocks.{index}")(tokens)
        pooled = nn.LayerNorm(_EPSILON, name="norm")(tokens[:, 0].astype(jnp.float32))
        return nn.Dense(self.num_classes, name="head")(pooled)


def build_vit_small(num_classes: int, image_size: int, dtype: Any = jnp.float32) -> VisionTransformer:
    """Builds ViT-S (Touvron et al. 2020, arXiv 2012.12877): timm's vit_small_patch16, or patch size 4 below 64 pixels.

    Args:
        num_classes: K.
        image_size: side of the images in pixels.
        dtype: dtype of activations.

    Raises:
        InputError: the patch size does not divide the image size.
    """
    patch_size = 16 if image_size >= 64 else 4
    if image_size % patch_size:
        raise InputError(f"config.data.image_size={image_size}: vit_s needs multiples of 4, or of 16 from 64 on")
    return VisionTransformer(num_classes, patch_size, dtype=dtype)
