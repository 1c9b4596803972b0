"""The weight network, which maps features of a sample, such as its loss, to its weight."""

import jax
from flax import linen as nn


class WeightNet(nn.Module):
    """Perceptron with one hidden layer (Meta-Weight-Net, Shu et al. 2019, section 3; UtilGen).

    Attributes:
        hidden: number of hidden units.
    """

    hidden: int = 100

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Returns weights float32 [B] in [0, 1] of features float32 [B, F]; UtilGen's only feature is the loss."""
        hidden = nn.relu(nn.Dense(self.hidden, name="hidden")(features))
        return nn.sigmoid(nn.Dense(1, name="output")(hidden))[:, 0]
