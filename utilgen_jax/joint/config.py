"""The config section `joint`."""

from __future__ import annotations

import dataclasses

from utilgen_jax.fields import setting


@dataclasses.dataclass(frozen=True)
class JointConfig:
    """The bilevel update of classifier, prompt attributes and LoRA, and the selection from a larger pool."""

    oversampling: int = setting(2, "images made for each one that a selection keeps", minimum=1)
    steps: int = setting(400, "bilevel steps, the folds in turn", minimum=1)
    learning_rate: float = setting(0.02, "Adam's learning rate, attribute logits", minimum=1e-8, maximum=10.0)
    weight_decay: float = setting(0.01, "L2 of the attribute logits; larger stays nearer to the start", minimum=0.0)
    num_generated: int = setting(10, "images generated inside a step", minimum=1)
    lora_rank: int = setting(4, "rank of the LoRA on the UNet's attention", minimum=1, maximum=1024)
    lora_learning_rate: float = setting(5e-4, "Adam's learning rate, LoRA", minimum=1e-8, maximum=1.0)
    sampler_steps: int = setting(4, "denoising steps to an image inside a step", minimum=1, maximum=1000)
    differentiable_steps: int = setting(1, "last denoising steps through which gradients flow", minimum=1)
