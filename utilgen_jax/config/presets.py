"""What the configs for Stable Diffusion have in common, and their variants `runlocal` and `pretrained`."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from utilgen_jax.config.schema import FIELDS, default_config, set_field

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
    "captions.sampler_steps": 0,
    "lora.epochs": 0,
    "lora.steps": 2,
    "lora.warmup_steps": 0,
    "lora.sampler_steps": 0,
    "difficulty.epochs": 0,
    "difficulty.steps": 10,
    "difficulty.batch_size": 16,
    "ensemble.members": 1,
    "textual_inversion.epochs": 0,
    "textual_inversion.steps": 10,
    "dpo.rounds": 1,
    "dpo.steps": 5,
    "dpo.batch_size": 4,
    "per_image.steps": 1,
    "per_image.sampler_steps": 4,
    "per_image.clip": "",
    "per_image.clip_weight": 0.0,
    "joint.plain_steps": 20,
    "joint.steps": 10,
    "joint.num_generated": 2,
    "joint.sampler_steps": 2,
    "joint.gate_images": 2,
    "joint.gate_steps": 20,
    "classifier.name": "small_cnn",
    "classifier.width": 16,
    "classifier.dtype": "float32",
    "classifier.optimizer": "adamw",
    "classifier.learning_rate": 3e-3,
    "classifier.steps": 40,
    "classifier.batch_size": 32,
    "valuation.plain_steps": 20,
    "valuation.steps": 10,
}

# Attributes that the captioner `tones` measures, and that a pretrained generator of one's own images was taught.
TONES = (
    "dark|medium brightness|bright",
    "low contrast|medium contrast|high contrast",
    "soft|some detail|much detail",
    "brighter on the right|evenly lit|brighter on the left",
)

# Of photographs: each method's published protocol, see methods/README.md; one checkpoint and classifier for all.
_PHOTOS: Mapping[str, Any] = {
    "data.shots": 16,
    "generator.dtype": "bfloat16",
    "generator.gradient_checkpointing": "blocks",
    "generator.image_size": 512,
    "generator.steps": 30,
    "generator.guidance_scale": 2.0,
    "generator.batch_size": 16,
    # UtilGen: five synthetic images to a real one, and so in each batch.
    "pool.images_per_class": 80,
    "classifier.synthetic_fraction": 5 / 6,
    "captions.sampler_steps": 50,
    "captions.guidance_scale": 1.5,
    "augcond.guidance_scale": 10.0,
    "lora.per_class": True,
    "lora.rank": 16,
    "lora.text_encoder_rank": 16,
    "lora.epochs": 200,
    "lora.batch_size": 8,
    "lora.learning_rate": 1e-4,
    "lora.warmup_steps": 100,
    "lora.prior_fraction": 0.0,
    "lora.snr_gamma": 0.0,
    "lora.crops": 8,
    "lora.sampler_steps": 50,
    "difficulty.epochs": 100,
    "difficulty.batch_size": 8,
    "difficulty.learning_rate": 1e-4,
    "difficulty.prior_fraction": 0.0,
    "difficulty.flip": True,
    "difficulty.zero_start": True,
    "textual_inversion.epochs": 750,
    "textual_inversion.learning_rate": 5e-4,
    "textual_inversion.prior_fraction": 0.0,
    "textual_inversion.snr_gamma": 0.0,
    "textual_inversion.flip": True,
    "dpo.steps": 1000,
    "dpo.micro_batch_size": 4,
    "dpo.learning_rate": 1e-5,
    "dpo.beta": 5000.0,
    "deliberate_practice.guidance_scale": 3.0,
    "deliberate_practice.micro_batch_size": 4,
    "per_image.sampler_steps": 30,
    "per_image.micro_batch_size": 2,
    "per_image.clip": "openai/clip-vit-large-patch14",
    "joint.plain_steps": 1000,
    "joint.num_generated": 16,
    "joint.micro_batch_size": 4,
    "joint.lora_learning_rate": 1e-5,
    "classifier.name": "resnet50",
    "classifier.dtype": "bfloat16",
    "classifier.optimizer": "sgd",
    "classifier.learning_rate": 0.1,
    "classifier.steps": 3000,
    "classifier.batch_size": 128,
    "classifier.max_shift": 0,
    "classifier.crop_area": 0.08,
    "classifier.flip": True,
    "classifier.mixing": "none",
    "valuation.plain_steps": 1000,
}

# The variant `pretrained`: a small generator of one's own images, made by `python -m utilgen_jax.pretraining`, with the
# settings that suit the embedded one; it trains in minutes on a laptop.
PRETRAINED: Mapping[str, Any] = {path: FIELDS[path].default for path in _PHOTOS} | {
    "data.image_size": 32,
    "data.exclude": "runs/pretrained/training_images.txt",
    "generator.checkpoint": "runs/pretrained",
    "prompts.attributes": TONES,
    "prompts.captions": "tones",
}


def stable_diffusion_config() -> ConfigDict:
    """Returns the settings for RGB images of a tfds data set with Stable Diffusion 2.1 as the generator.

    A config file adds the data set's name and what else is its own. Each method has its published protocol, as far as
    methods/README.md's table says. Training images stand in the device's memory as float32: 10,000 of 224x224 take
    6 GB.
    """
    config = default_config()
    config.data.update(source="tfds", image_size=224, channels=3)
    config.generator.checkpoint = "sd21"
    config.prompts.update(template="a photo of a {class}", attributes=PHOTO_ATTRIBUTES, captions="blip2")
    for path, value in _PHOTOS.items():
        set_field(config, path, value)
    return config
