"""What the configs for Stable Diffusion have in common, and their variants `runlocal` and `domain`."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from utilgen_jax.config.schema import FIELDS, default_config

# What may be said of a photo besides its class, for the row `joint`.
PHOTO_PHRASES = (
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
    "adaptation.steps": 10,
    "difficulty.steps": 10,
    "difficulty.batch_size": 16,
    "ensemble.members": 1,
    "inversion.steps": 10,
    "preference.rounds": 1,
    "preference.steps": 5,
    "instance.steps": 1,
    "joint.steps": 10,
    "joint.generated": 2,
    "joint.sampler_steps": 2,
    "classifier.name": "small_cnn",
    "classifier.width": 16,
    "classifier.dtype": "float32",
    "classifier.steps": 40,
    "classifier.batch_size": 32,
    "utility.steps": 20,
}

# What the captioner `tones` says of any image, and a small generator of one's own images is taught.
TONES = (
    "dark|medium brightness|bright",
    "low contrast|medium contrast|high contrast",
    "soft|some detail|much detail",
    "brighter on the right|evenly lit|brighter on the left",
)

# The variant `domain`: a small generator of one's own images, made by `python -m utilgen_jax.pretraining`, and with it
# all that suits the embedded one, in a training of minutes on a laptop.
_OF_SMALL_GENERATORS = (
    "data.shots",
    "generator.dtype",
    "generator.steps",
    "generator.guidance_scale",
    "generator.image_size",
    "generator.batch_size",
    "pool.images_per_class",
    "adaptation.learning_rate",
    "difficulty.batch_size",
    "difficulty.prior_fraction",
    "difficulty.learning_rate",
    "preference.learning_rate",
    "joint.generated",
    "joint.lora_learning_rate",
    "classifier.name",
    "classifier.dtype",
    "classifier.steps",
    "classifier.batch_size",
    "classifier.max_shift",
    "classifier.mixing",
    "utility.steps",
)
DOMAIN: Mapping[str, Any] = {path: FIELDS[path].default for path in _OF_SMALL_GENERATORS} | {
    "data.image_size": 32,
    "data.exclude": "runs/domain/training_images.txt",
    "generator.checkpoint": "runs/domain",
    "generator.phrases": TONES,
    "captions.source": "tones",
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
        checkpoint="stabilityai/stable-diffusion-2-1-base",
        dtype="bfloat16",
        prompt="a photo of a {class}",
        phrases=PHOTO_PHRASES,
        image_size=512,
        steps=30,
        guidance_scale=2.0,
        batch_size=16,
    )
    config.pool.images_per_class = 80
    config.captions.source = "blip2"
    config.adaptation.learning_rate = 1e-4
    config.difficulty.update(batch_size=8, prior_fraction=0.5, learning_rate=1e-4)
    config.preference.learning_rate = 1e-5
    config.joint.update(generated=2, lora_learning_rate=1e-5)
    config.classifier.update(name="resnet50", dtype="bfloat16", steps=3000, batch_size=128, max_shift=16, mixing="none")
    config.utility.steps = 1000
    return config
