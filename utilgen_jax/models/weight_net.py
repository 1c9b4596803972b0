"""The weight allocation network: what a sample's loss says about its worth."""

import jax
from flax import linen as nn


class WeightNet(nn.Module):
    """One hidden layer from features of a sample to a weight (Meta-Weight-Net, Shu et al. 2019, section 3; UtilGen).

    Attributes:
        hidden: hidden units.
    """

    hidden: int = 100

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Returns weights float32 [B] in [0, 1] of features float32 [B, F]; for UtilGen the one feature is the loss."""
        hidden = nn.relu(nn.Dense(self.hidden, name="hidden")(features))
        return nn.sigmoid(nn.Dense(1, name="output")(hidden))[:, 0]
