"""Weights by a small network, which learns from the validation loss: Meta-Weight-Net, UtilGen, and beyond."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from utilgen_jax.bilevel.weightings.weighting import Params, Weighting, WeightingInputs
from utilgen_jax.models.weight_net import WeightNet


def _margin(weighting_inputs: WeightingInputs) -> jax.Array:
    """Probability of the label's class minus that of the likeliest other."""
    probabilities = jax.nn.softmax(weighting_inputs.logits)
    is_label = jax.nn.one_hot(jnp.argmax(weighting_inputs.examples.targets, -1), weighting_inputs.logits.shape[-1]) > 0
    own = jnp.sum(jnp.where(is_label, probabilities, 0.0), -1)
    return own - jnp.max(jnp.where(is_label, 0.0, probabilities), -1)


def _entropy(weighting_inputs: WeightingInputs) -> jax.Array:
    """Entropy of the prediction as a share of the largest possible."""
    log_probabilities = jax.nn.log_softmax(weighting_inputs.logits)
    entropy = -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, -1)
    return entropy / jnp.log(weighting_inputs.logits.shape[-1])


def _field(name: str) -> Callable[[WeightingInputs], jax.Array]:
    def read(weighting_inputs: WeightingInputs) -> jax.Array:
        values = getattr(weighting_inputs.examples, name)
        if values is None:
            raise ValueError(f"the weighting looks at {name}, which these examples do not have: set Examples.{name}")
        return values

    return read


# name -> (signals -> float32 [B] or [B, d])
FEATURES: Mapping[str, Callable[[WeightingInputs], jax.Array]] = {
    "loss": lambda weighting_inputs: weighting_inputs.losses,
    "margin": _margin,
    "entropy": _entropy,
    "class": lambda weighting_inputs: weighting_inputs.examples.targets,
    "difficulty": _field("difficulty"),
    "similarity": _field("similarity"),
    "attributes": _field("attributes"),
}


def loss_network(hidden: int = 100) -> Weighting:
    """The weight as a learnt function of the loss alone (Meta-Weight-Net, Shu et al. 2019; UtilGen, arXiv 2510.24262).

    Args:
        hidden: units of its one hidden layer.
    """
    return feature_network(("loss",), num_classes=0, hidden=hidden)


def feature_network(features: Sequence[str], num_classes: int, hidden: int = 100, num_attributes: int = 0) -> Weighting:
    """The weight as a learnt function of several things that are known of an example; ours.

    Args:
        features: names in `FEATURES`, in the order in which the network sees them.
        num_classes: K, the width of the feature "class".
        hidden: units of its one hidden layer.
        num_attributes: A, the width of the feature "attributes".

    Raises:
        ValueError: a feature is unknown; or, when it is applied, the examples do not have it.
    """
    unknown = [name for name in features if name not in FEATURES]
    if unknown or not features:
        raise ValueError(f"features {list(features)}: choose among {', '.join(FEATURES)}")
    module: Any = WeightNet(hidden)
    widths = {"class": num_classes, "attributes": num_attributes}
    width = sum(widths.get(name, 1) for name in features)

    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.zeros((1, width)))["params"]

    def apply(params: Params, weighting_inputs: WeightingInputs) -> tuple[jax.Array, jax.Array]:
        size = weighting_inputs.logits.shape[0]
        columns = [FEATURES[name](weighting_inputs).reshape(size, -1) for name in features]
        return module.apply({"params": params}, jnp.concatenate(columns, -1)), weighting_inputs.examples.targets

    return Weighting(init, apply)
