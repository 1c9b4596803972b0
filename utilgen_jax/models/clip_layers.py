"""The transformer shared by CLIP's text and vision encoders, and parsing of their config.json.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.dot_product_attention import dot_product_attention
from utilgen_jax.models.layers import Dense


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x * sigmoid(1.702 x), the GELU approximation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """Returns x * Phi(x), with Phi the normal distribution function (not the tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


class CLIPAttention(nn.Module):
    """Multi-head self-attention: [B, T, hidden_size] -> [B, T, hidden_size]; for the mask see `CLIPEncoder`."""

    hidden_size: int
    num_attention_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Returns the attention's output, before the residual sum."""
        heads = (*hidden_states.shape[:-1], self.num_attention_heads, self.hidden_size // self.num_attention_heads)
        query, key, value = (
            Dense(self.hidden_size, dtype=self.dtype, name=name)(hidden_states).reshape(heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        attended = dot_product_attention(query, key, value, mask=mask)
        return Dense(self.hidden_size, dtype=self.dtype, name="out_proj")(attended.reshape(hidden_states.shape))


class CLIPMLP(nn.Module):
    """Two dense layers around `hidden_act`: [B, T, hidden_size] -> [B, T, hidden_size]."""

    hidden_size: int
    intermediate_size: int
    hidden_act: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Returns the feed-forward output, before the residual sum."""
        hidden_states = Dense(self.intermediate_size, dtype=self.dtype, name="fc1")(hidden_states)
        return Dense(self.hidden_size, dtype=self.dtype, name="fc2")(ACTIVATIONS[self.hidden_act](hidden_states))


class CLIPEncoderLayer(nn.Module):
    """One pre-norm transformer layer: [B, T, hidden_size] -> [B, T, hidden_size]."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Returns the layer's output."""
        normed = nn.LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="layer_norm1")(hidden_states)
        attention = CLIPAttention(self.hidden_size, self.num_attention_heads, self.dtype, name="self_attn")
        hidden_states = hidden_states + attention(normed, mask)
        normed = nn.LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="layer_norm2")(hidden_states)
        mlp = CLIPMLP(self.hidden_size, self.intermediate_size, self.hidden_act, self.dtype, name="mlp")
        return hidden_states + mlp(normed)


class CLIPEncoder(nn.Module):
    """The stack of layers."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """Applies the layers and returns all intermediate states.

        Args:
            hidden_states: [B, T, hidden_size], the embeddings.
            mask: bool, broadcastable to [B, heads, T, T]; False hides a key from a query. None hides nothing.

        Returns:
            num_hidden_layers + 1 arrays [B, T, hidden_size]: the input, then the output of each layer.
        """
        states = [hidden_states]
        for index in range(self.num_hidden_layers):
            layer = CLIPEncoderLayer(
                self.hidden_size,
                self.intermediate_size,
                self.num_attention_heads,
                self.hidden_act,
                self.layer_norm_eps,
                self.dtype,
                name=f"layers.{index}",
            )
            states.append(layer(states[-1], mask))
        return tuple(states)


def read_clip_config(module: type[nn.Module], config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Returns the settings of a CLIP module from a parsed config.json, after checking them.

    Other keys are ignored, as transformers writes many that do not affect inference. Missing keys have the module's
    defaults, which are transformers'.

    Args:
        module: module class, whose fields have the names of the keys.
        config: the parsed config.json.
        model_type: expected `model_type`, if the config has one.

    Returns:
        Keyword arguments for `module`.

    Raises:
        InputError: the model has another type, or a value is not supported.
    """
    where = f"{module.__name__} config"
    if config.get("model_type", model_type) != model_type:
        raise InputError(f"{where}: model_type = {config['model_type']!r} is not supported; {model_type!r} is")
    fields = {name: field.default for name, field in module.__dataclass_fields__.items()}
    settings = {name: value for name, value in config.items() if name in set(fields) - {"parent", "name", "dtype"}}
    model: dict[str, Any] = fields | settings
    if model["hidden_act"] not in ACTIVATIONS:
        raise InputError(
            f"{where}: hidden_act = {model['hidden_act']!r} is not supported; {', '.join(ACTIVATIONS)} are"
        )
    for name, value in settings.items():
        if isinstance(fields[name], int) and not isinstance(value, int):
            raise InputError(f"{where}: {name} = {value!r} is not supported; one integer is")
    width, heads = model["hidden_size"], model["num_attention_heads"]
    if width % heads:
        raise InputError(f"{where}: num_attention_heads = {heads} must divide hidden_size = {width}")
    return settings
