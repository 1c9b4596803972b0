"""A classifier as training sees it: a network, what of it no step changes, and where training starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.checkpoints.classifier_files import head_name, load_classifier_variables, open_classifier_file
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.data.images import as_floats
from utilgen_jax.models.classifiers import build_classifier, head_inputs
from utilgen_jax.types import Params

# name -> mean and standard deviation of the channels in [0, 1]; None: images stay in [-1, 1].
NORMALIZATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "none": None,
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@struct.dataclass
class Classifier:
    """A network and its fixed part. A pytree: what is fixed is an argument of a jitted step, no constant in it.

    Attributes:
        module: a linen classifier.
        normalization: key of `NORMALIZATIONS`, of what the network is shown.
        frozen: variables of the module that no step changes: of "params" whole scopes, of "batch_stats" all.
        initial: parameters from which training starts, whole scopes; those in neither are drawn at random.
    """

    module: Any = struct.field(pytree_node=False)
    normalization: str = struct.field(pytree_node=False, default="none")
    frozen: dict[str, Any] = struct.field(default_factory=dict)
    initial: dict[str, Any] = struct.field(default_factory=dict)

    def apply(self, params: Params, images: jax.Array) -> jax.Array:
        """Logits float32 [B, K] of images [B, H, W, C], in [-1, 1] or uint8, by trained and frozen parameters."""
        return self.module.apply(self._variables(params), normalize(as_floats(images), self.normalization))

    def features(self, params: Params, images: jax.Array) -> jax.Array:
        """What the last layer is given, float32 [B, D], of images as in `apply`."""
        variables = self._variables(params)
        return head_inputs(
            self.module, variables, normalize(as_floats(images), self.normalization), head_name(variables["params"])
        )

    def _variables(self, params: Params) -> dict[str, Any]:
        return {**self.frozen, "params": {**self.frozen.get("params", {}), **params}}


def normalize(images: jax.Array, normalization: str) -> jax.Array:
    """Channels as a network was trained on them: images float32 [..., C] in [-1, 1] to (x - mean) / deviation."""
    channels = NORMALIZATIONS[normalization]
    if channels is None:
        return images
    mean, deviation = (np.asarray(values, np.float32) for values in channels)
    return ((images + 1.0) / 2.0 - mean) / deviation


def make_classifier(config: ClassifierConfig, num_classes: int, image_size: int, channels: int) -> Classifier:
    """Makes the classifier of a configuration.

    With `pretrained` weights the norms are those of the file. Where it has no head, or one for another number of
    classes, the head starts from random weights, and standard error is told so.

    Args:
        config: name, width, dtype, pretrained, trainable and normalization are read.
        num_classes: K.
        image_size: side of the images in pixels.
        channels: of the images.

    Returns:
        The classifier; its arrays are in host memory.

    Raises:
        InputError: the network does not suit the images, or the file not the network.
    """
    architecture = config.name, num_classes, config.width, image_size, jnp.dtype(config.dtype)
    if not config.pretrained:
        return Classifier(build_classifier(*architecture), config.normalization)
    file = open_classifier_file(config.pretrained)
    module = build_classifier(*architecture, norm=file.norm)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), images)
    variables, head_replaced = load_classifier_variables(file, expected, may_replace_head=True)
    head = head_name(expected["params"])
    if head_replaced and jax.process_index() == 0:
        print(f"{file.path}: has no head for {num_classes} classes; {head} starts from random weights", file=sys.stderr)
    params = variables.pop("params")
    if config.trainable == "all":
        return Classifier(module, config.normalization, frozen=variables, initial=params)
    initial = {} if head_replaced else {head: params.pop(head)}
    return Classifier(module, config.normalization, frozen={**variables, "params": params}, initial=initial)
