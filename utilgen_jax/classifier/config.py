"""The config section `classifier`."""

from __future__ import annotations

import dataclasses

from utilgen_jax.fields import setting

CLASSIFIERS = ("small_cnn", "mlp") + tuple(f"resnet{depth}" for depth in (20, 32, 56, 18, 34, 50, 101))
CLASSIFIERS += ("resnext50", "wide_resnet50", "mobilenet_v2", "vit_s")
NORMALIZATIONS = ("none", "imagenet")
MIXINGS = ("none", "mixup", "cutmix")


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The downstream classifier and its training, the same for every method, or a comparison means nothing."""

    name: str = setting("small_cnn", "the network", choices=CLASSIFIERS)
    width: int = setting(32, "channels of small_cnn's first layer, units of mlp's hidden layers", minimum=1)
    pretrained: str = setting(
        "", "torch weights to start from, .safetensors or .npz; empty: random weights", is_path=True
    )
    trainable: str = setting("all", "'head': only the last layer, on frozen features", choices=("all", "head"))
    normalization: str = setting("none", "of channels; 'imagenet' as in torchvision", choices=NORMALIZATIONS)
    dtype: str = setting("float32", "type of the classifier's activations", choices=("float32", "bfloat16"))
    steps: int = setting(400, "optimiser steps, the same for every method", minimum=1)
    batch_size: int = setting(64, "images a step", minimum=2)
    synthetic_fraction: float = setting(
        0.0,
        "synthetic fraction of a batch; 1: synthetic only; 0: 3 / (3 + shots)",
        minimum=0.0,
        maximum=1.0,
    )
    optimizer: str = setting("adamw", "'sgd' has a momentum of 0.9", choices=("adamw", "sgd"))
    learning_rate: float = setting(3e-3, "the optimiser's peak, then cosine decay", minimum=1e-8, maximum=10.0)
    weight_decay: float = setting(1e-4, "decoupled in adamw, part of the gradient in sgd", minimum=0.0, maximum=1.0)
    label_smoothing: float = setting(0.2, "share of the target spread over all classes", minimum=0.0, maximum=0.9)
    max_shift: int = setting(1, "augmentation: random shift, pixels each way", minimum=0)
    crop_area: float = setting(
        1.0, "augmentation: least part of an image that a random crop holds; 1: no crops", minimum=0.01, maximum=1.0
    )
    flip: bool = setting(False, "augmentation: whether images are mirrored at random")
    augmentation: str = setting("none", "of training images, for every method", choices=("none", "randaugment"))
    mixing: str = setting("mixup", "of the images of a batch, for every method", choices=MIXINGS)
    mixing_alpha: float = setting(1.0, "α of the mixing's Beta distribution", minimum=1e-3)
    loss: str = setting("softmax", "'balanced_softmax' for rare classes", choices=("softmax", "balanced_softmax"))
    eval_batch_size: int = setting(500, "test images at once", minimum=1, may_change=True)

    @property
    def is_synthetic_only(self) -> bool:
        """Whether batches hold synthetic images alone."""
        return self.synthetic_fraction == 1

    @property
    def num_synthetic(self) -> int:
        """Synthetic images in a batch: at least one, and at least one real beside them unless the fraction is 1."""
        most = self.batch_size if self.is_synthetic_only else self.batch_size - 1
        return min(max(round(self.batch_size * self.synthetic_fraction), 1), most)


def synthetic_fraction(shots: float) -> float:
    """The synthetic fraction of a batch that suits a number of real images: 3 / (3 + shots), at least 0.2.

    As if a class's synthetic images, however many, counted as three real ones; configs/README.md has the accuracies on
    held-out digits behind it. The least is what DataDream's public code gives 16 shots (Kim et al. 2024, arXiv
    2407.10910; the weight of real images, lambda_1, is 0.8).

    Args:
        shots: real images a class, on average.
    """
    return max(3 / (3 + shots), 0.2)
