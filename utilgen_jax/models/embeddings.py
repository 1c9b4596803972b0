"""Embeddings of the timestep and of the class condition."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.models.layers import Dense


def timestep_embedding(
    timesteps: jax.Array, embedding_dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> jax.Array:
    """Returns the sinusoidal embedding of timesteps, with periods 2 pi to 20000 pi (Ho et al. 2020, arXiv:2006.11239).

    Args:
        timesteps: timesteps of the noise schedule (0 .. 999), int or float [B].
        embedding_dim: width of the result; even.
        flip_sin_to_cos: whether cosines come before sines, as in Stable Diffusion.
        freq_shift: subtracted from the number of frequencies in their spacing; 1 includes the period 20000 pi.

    Returns:
        [B, embedding_dim] float32, in [-1, 1].
    """
    half_dim = embedding_dim // 2
    exponents = -math.log(10000.0) * jnp.arange(half_dim, dtype=jnp.float32) / (half_dim - freq_shift)
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponents)
    sines, cosines = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([cosines, sines] if flip_sin_to_cos else [sines, cosines], axis=-1)


class TimestepEmbedding(nn.Module):
    """Two-layer perceptron on the embedding of a timestep or a class condition.

    Always computes in float32: bfloat16 does not resolve the sinusoids of neighbouring timesteps.

    Attributes:
        time_embed_dim: width of the hidden layer and of the result.
    """

    time_embed_dim: int

    @nn.compact
    def __call__(self, embedding: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Maps [B, D], and a condition [B, C] or [1, C] if there is one, to [B, time_embed_dim] float32."""
        if condition is not None:
            projection = Dense(embedding.shape[-1], use_bias=False, dtype=jnp.float32, name="cond_proj")
            embedding = embedding + projection(condition)
        hidden = Dense(self.time_embed_dim, dtype=jnp.float32, name="linear_1")(embedding)
        return Dense(self.time_embed_dim, dtype=jnp.float32, name="linear_2")(nn.silu(hidden))
