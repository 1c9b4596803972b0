"""The learned difficulty token, which conditions the UNet on a class label and a difficulty."""

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.types import Params


class DifficultyEncoder(nn.Module):
    """Perceptron from [one-hot label ; difficulty] to a token of cross-attention (arXiv:2411.18109).

    The paper specifies a perceptron; the two hidden layers, their width and SiLU are our choice.

    Attributes:
        num_classes: number of classes, K.
        cross_attention_dim: width of the token and the text states, D.
        hidden_size: width of the two hidden layers.
        dtype: dtype of activations.
    """

    num_classes: int
    cross_attention_dim: int
    hidden_size: int = 512
    dtype: jnp.dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: jnp.dtype = jnp.float32) -> Self:
        """Builds the encoder of a parsed config.json; InputError if a size is missing or invalid."""
        names = ("num_classes", "cross_attention_dim", "hidden_size")
        wrong = [f"{name} = {config.get(name)!r}" for name in names if not _is_size(config.get(name))]
        if wrong:
            raise InputError(f"difficulty encoder config: {', '.join(wrong)}: must be positive integers")
        return cls(**{name: config[name] for name in names}, dtype=dtype)

    def to_config(self) -> dict[str, Any]:
        """Returns the `config.json` that `from_config` reads."""
        return {
            "_class_name": type(self).__name__,
            "num_classes": self.num_classes,
            "cross_attention_dim": self.cross_attention_dim,
            "hidden_size": self.hidden_size,
        }

    @nn.compact
    def __call__(self, labels: jax.Array, difficulty: jax.Array) -> jax.Array:
        """Encodes labels and difficulties as a token to append to the text states.

        Args:
            labels: int [B], 0 .. num_classes - 1.
            difficulty: 1 - p(true class) of a classifier, float [B] in [0, 1].

        Returns:
            [B, 1, cross_attention_dim], in `dtype`.
        """
        one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=self.dtype)
        features = jnp.concatenate([one_hot, difficulty[:, None].astype(self.dtype)], axis=-1)
        hidden = nn.silu(nn.Dense(self.hidden_size, dtype=self.dtype, name="linear_1")(features))
        hidden = nn.silu(nn.Dense(self.hidden_size, dtype=self.dtype, name="linear_2")(hidden))
        return nn.Dense(self.cross_attention_dim, dtype=self.dtype, name="linear_3")(hidden)[:, None]


def with_zero_token(params: Params) -> Params:
    """An encoder's parameters with the last layer zero: its token is zero for all labels and difficulties."""
    return params | {"linear_3": jax.tree.map(jnp.zeros_like, params["linear_3"])}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
