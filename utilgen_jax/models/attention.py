"""The transformer after the residual blocks of Stable Diffusion's UNet."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.models.dot_product_attention import dot_product_attention
from utilgen_jax.models.layers import Conv, Dense


class Attention(nn.Module):
    """Multi-head attention from `hidden_states` to themselves or to a context.

    Attributes:
        num_heads: number of heads; must divide the width of the input.
        dtype: dtype of activations.
        attention_implementation: see `dot_product_attention`.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"

    @nn.compact
    def __call__(self, hidden_states: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Maps hidden_states [B, T, C] and a context [B, S, D] (None: hidden_states) to [B, T, C]."""
        context = hidden_states if context is None else context
        channels = hidden_states.shape[-1]

        def project(name: str, inputs: jax.Array) -> jax.Array:
            projected = Dense(channels, use_bias=False, dtype=self.dtype, name=name)(inputs)
            return projected.reshape(*inputs.shape[:-1], self.num_heads, channels // self.num_heads)

        attended = dot_product_attention(
            project("to_q", hidden_states),
            project("to_k", context),
            project("to_v", context),
            implementation=self.attention_implementation,
        )
        return Dense(channels, dtype=self.dtype, name="to_out.0")(attended.reshape(hidden_states.shape))


class GEGLU(nn.Module):
    """Linear layer gated by the exact GELU of a second one (Shazeer 2020, arXiv:2002.05202)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., features]."""
        projected = Dense(2 * self.features, dtype=self.dtype, name="proj")(hidden_states)
        linear, gate = jnp.split(projected, 2, axis=-1)
        return linear * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU of four times the width, and a linear layer back to the width."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., C]."""
        channels = hidden_states.shape[-1]
        gated = GEGLU(4 * channels, self.dtype, name="net.0")(hidden_states)
        return Dense(channels, dtype=self.dtype, name="net.2")(gated)  # torch's net.1 is dropout


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with a pre layer norm and a residual connection."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"

    @nn.compact
    def __call__(self, hidden_states: jax.Array, encoder_hidden_states: jax.Array) -> jax.Array:
        """Maps hidden_states [B, T, C] and encoder_hidden_states [B, S, D] to [B, T, C]."""

        def norm(name: str) -> jax.Array:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(hidden_states)

        settings = (self.num_heads, self.dtype, self.attention_implementation)
        hidden_states = hidden_states + Attention(*settings, name="attn1")(norm("norm1"))
        hidden_states = hidden_states + Attention(*settings, name="attn2")(norm("norm2"), encoder_hidden_states)
        return hidden_states + FeedForward(self.dtype, name="ff")(norm("norm3"))


class Transformer2DModel(nn.Module):
    """Transformer blocks on the pixels of a feature map, with a residual connection.

    Attributes:
        num_heads: number of attention heads.
        norm_num_groups: groups of the first group norm.
        use_linear_projection: whether `proj_in` and `proj_out` are linear layers (Stable Diffusion 2) or equivalent 1×1
            convolutions (1.x).
        dtype: dtype of activations.
        attention_implementation: see `dot_product_attention`.
        num_layers: number of blocks; Stable Diffusion XL has up to ten.
    """

    num_heads: int
    norm_num_groups: int = 32
    use_linear_projection: bool = False
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"
    num_layers: int = 1

    @nn.compact
    def __call__(self, hidden_states: jax.Array, encoder_hidden_states: jax.Array) -> jax.Array:
        """Maps hidden_states [B, h, w, C] and encoder_hidden_states [B, S, D] to [B, h, w, C]."""
        batch, height, width, channels = hidden_states.shape

        def project(name: str, inputs: jax.Array) -> jax.Array:
            if self.use_linear_projection:
                return Dense(channels, dtype=self.dtype, name=name)(inputs)
            return Conv(channels, (1, 1), dtype=self.dtype, name=name)(inputs)

        tokens = nn.GroupNorm(self.norm_num_groups, epsilon=1e-6, dtype=self.dtype, name="norm")(hidden_states)
        tokens = project("proj_in", tokens).reshape(batch, height * width, channels)
        for index in range(self.num_layers):
            tokens = BasicTransformerBlock(
                self.num_heads, self.dtype, self.attention_implementation, name=f"transformer_blocks.{index}"
            )(tokens, encoder_hidden_states)
        return hidden_states + project("proj_out", tokens.reshape(hidden_states.shape))
