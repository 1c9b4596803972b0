"""What the configs for Stable Diffusion have in common, and their variants `runlocal` and `pretrained`."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from utilgen_jax.config.schema import FIELDS, default_config

# Attributes of photographs, for `joint`.
PHOTO_ATTRIBUTES = (
    "close-up|from afar",
    "from the side|from above|from below",
    "indoors|outdoors",
    "in bright light|in dim light",
    "on a plain background|among other things",
    "sharp|blurred|grainy",
)

# The variant `runlocal`: every stage on a laptop, given a small checkpoint; `vanilla` takes a minute, `utilgen` some.
RUNLOCAL: Mapping[str, Any] = {
    "data.shots": 4,
    "data.image_size": 32,
    "data.max_classes": 10,
    "data.max_test": 500,
    "generator.dtype": "float32",
    "generator.steps": 4,
    "generator.image_size": 64,
    "generator.batch_size": 8,
    "pool.images_per_class": 4,
    "pool.fill_to": 0,
    "lora.steps": 10,
    "difficulty.steps": 10,
    "difficulty.batch_size": 16,
    "ensemble.members": 1,
    "textual_inversion.steps": 10,
    "dpo.rounds": 1,
    "dpo.steps": 5,
    "per_image.steps": 1,
    "joint.steps": 10,
    "joint.num_generated": 2,
    "joint.sampler_steps": 2,
    "joint.gate_images": 2,
    "joint.gate_steps": 20,
    "classifier.name": "small_cnn",
    "classifier.width": 16,
    "classifier.dtype": "float32",
    "classifier.steps": 40,
    "classifier.batch_size": 32,
    "valuation.plain_steps": 20,
    "valuation.steps": 20,
}

# Attributes that the captioner `tones` measures, and that a pretrained generator of one's own images was taught.
TONES = (
    "dark|medium brightness|bright",
    "low contrast|medium contrast|high contrast",
    "soft|some detail|much detail",
    "brighter on the right|evenly lit|brighter on the left",
)

# The variant `pretrained`: a small generator of one's own images, made by `python -m utilgen_jax.pretraining`, with the
# settings that suit the embedded one; it trains in minutes on a laptop.
_OF_SMALL_GENERATORS = (
    "data.shots",
    "generator.dtype",
    "generator.steps",
    "generator.guidance_scale",
    "generator.image_size",
    "generator.batch_size",
    "pool.images_per_class",
    "lora.learning_rate",
    "difficulty.batch_size",
    "difficulty.prior_fraction",
    "difficulty.learning_rate",
    "dpo.learning_rate",
    "joint.num_generated",
    "joint.lora_learning_rate",
    "classifier.name",
    "classifier.dtype",
    "classifier.steps",
    "classifier.batch_size",
    "classifier.max_shift",
    "classifier.mixing",
    "valuation.steps",
)
PRETRAINED: Mapping[str, Any] = {path: FIELDS[path].default for path in _OF_SMALL_GENERATORS} | {
    "data.image_size": 32,
    "data.exclude": "runs/pretrained/training_images.txt",
    "generator.checkpoint": "runs/pretrained",
    "prompts.attributes": TONES,
    "prompts.captions": "tones",
}


def stable_diffusion_config() -> ConfigDict:
    """Returns the settings for RGB images of a tfds data set with Stable Diffusion 2.1 as the generator.

    A config file adds the data set's name and what else is its own. From others: 16 shots a class, for a ResNet-50 with
    five synthetic images to a real one (UtilGen, arXiv 2510.24262); captions by BLIP-2 (arXiv 2307.08526); 30
    denoising steps, guidance 2 and the adaptation's learning rate (Real-Fake's public code). All else is ours. Training
    images stand in the device's memory as float32: 10,000 of 224x224 take 6 GB.
    """
    config = default_config()
    config.data.update(source="tfds", shots=16, image_size=224, channels=3)
    config.generator.update(
        checkpoint="sd21",
        dtype="bfloat16",
        image_size=512,
        steps=30,
        guidance_scale=2.0,
        batch_size=16,
    )
    config.pool.images_per_class = 80
    config.prompts.update(template="a photo of a {class}", attributes=PHOTO_ATTRIBUTES, captions="blip2")
    config.lora.learning_rate = 1e-4
    config.difficulty.update(batch_size=8, prior_fraction=0.5, learning_rate=1e-4)
    config.dpo.learning_rate = 1e-5
    config.joint.update(num_generated=2, lora_learning_rate=1e-5)
    config.classifier.update(name="resnet50", dtype="bfloat16", steps=3000, batch_size=128, max_shift=16, mixing="none")
    config.valuation.steps = 1000
    return config
