"""The config section `joint`."""

from __future__ import annotations

import dataclasses

from utilgen_jax.fields import setting


@dataclasses.dataclass(frozen=True)
class JointConfig:
    """The one bilevel update of classifier, weight network and the generator's adapter."""

    steps: int = setting(60, "bilevel updates, the folds in turn", minimum=1)
    plain_steps: int = setting(100, "steps of a fold's classifier before them", minimum=1)
    inner_learning_rate: float = setting(
        1e-4, "AdamW's rate of the classifier's steps; small, so that the lookahead is local", minimum=1e-8, maximum=1.0
    )
    outer_every: int = setting(1, "steps of a fold between two of the outer level; the others are plain", minimum=1)
    inner_steps: int = setting(1, "classifier's steps that an update looks through", minimum=1, maximum=5)
    num_generated: int = setting(10, "images generated for each of them", minimum=1)
    micro_batch_size: int = setting(0, "of these images that are worked on at a time; 0: all", minimum=0)
    sampler_steps: int = setting(4, "denoising steps to an image inside an update", minimum=1, maximum=1000)
    differentiable_steps: int = setting(1, "last denoising steps through which gradients flow", minimum=1)
    ema_decay: float = setting(
        0.95, "of the average of the classifier's parameters; 0: no average", minimum=0.0, maximum=0.99999
    )
    weight_learning_rate: float = setting(1e-2, "Adam's rate, weight network", minimum=1e-8, maximum=10.0)
    attribute_learning_rate: float = setting(0.02, "Adam's rate, attribute logits", minimum=1e-8, maximum=10.0)
    attribute_weight_decay: float = setting(0.01, "L2 of the attribute logits; larger stays nearer to 0", minimum=0.0)
    lora_rank: int = setting(4, "rank of the LoRA on the UNet's attention", minimum=1, maximum=1024)
    lora_learning_rate: float = setting(5e-4, "Adam's rate, LoRA", minimum=1e-8, maximum=1.0)
    encoder_learning_rate: float = setting(1e-4, "Adam's rate, difficulty encoder", minimum=1e-8, maximum=1.0)
    difficulty_learning_rate: float = setting(
        0.02, "Adam's rate, logits of each class's requested difficulty", minimum=1e-8, maximum=10.0
    )
    lowest_difficulty: float = setting(0.2, "that is requested", minimum=0.01, maximum=0.5)
    highest_difficulty: float = setting(0.8, "that is requested", minimum=0.5, maximum=0.99)
    start: str = setting(
        "plain", "the adapter's start: the generator as it is, or `difficulty`'s", choices=("plain", "difficulty")
    )
    anchor: float = setting(1.0, "weight of the distance to the frozen generator's predictions", minimum=0.0)
    coverage: float = setting(0.1, "weight of the discrepancy between generated and real features", minimum=0.0)
    coverage_features: tuple[str, ...] = setting(
        ("classifier",), "in which that is taken, one or both", choices=("classifier", "image_encoder")
    )
    gate_images: int = setting(10, "images a class that decide whether the adapter is used; 0: it always is", minimum=0)
    gate_steps: int = setting(100, "steps of the classifiers that decide", minimum=1)
