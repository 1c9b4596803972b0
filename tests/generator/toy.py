"""A generator small enough to compile in a moment: one matrix for a UNet, one for an autoencoder."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.diffusion.schedules import load_schedule
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.sampling import step_keys
from utilgen_jax.generator.stable_diffusion import Architecture, StableDiffusion

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}
CLASSES, WORDS, WIDTH, CHANNELS, SIDE = 3, 2, 4, 2, 4


def normal(seed, *shape, scale=1.0):
    """NumPy's draws: those of JAX would take longer to compile than all the rest."""
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape, np.float32))


class ToyUNet:
    """Predicts tanh of latents and mean text state, each times a matrix, which may have a LoRA, and first label."""

    in_channels = out_channels = CHANNELS
    class_embed_type = None

    def apply(self, variables, latents, timesteps, embeds, class_labels=None):
        def kernel(name):
            frozen = variables["params"][name]["kernel"]
            if "lora" not in variables:
                return frozen
            factors, scale = variables["lora"][name], variables["lora_scale"][name]["scale"]
            return frozen + scale * factors["down"] @ factors["up"]

        words = embeds.mean(1) @ kernel("mid.to_k")
        words = words if class_labels is None else words + class_labels[:, :1]
        return jnp.tanh(latents @ kernel("mid.to_q") + words[:, None, None] + 1e-3 * timesteps[:, None, None, None])


class ToyDecoder:
    """Images twice as large as their latents."""

    block_out_channels = (1, 1)
    scaling_factor = 0.5

    def apply(self, variables, latents, method):
        assert method == "decode"
        return 0.1 * jnp.repeat(jnp.repeat(latents @ variables["params"]["kernel"], 2, axis=1), 2, axis=2)


def make_toy():
    """Returns a `StableDiffusion`."""
    params = {
        "unet": {
            "mid.to_q": {"kernel": normal(7, CHANNELS, CHANNELS, scale=0.5)},
            "mid.to_k": {"kernel": normal(8, WIDTH, CHANNELS)},
        },
        "vae": {"kernel": normal(9, CHANNELS, 3)},
    }
    architecture = Architecture(
        unet=ToyUNet(),
        vae=ToyDecoder(),
        text_encoder=None,
        image_encoder=None,
        tokenizer=None,
        schedule=load_schedule(SCHEDULE),
        image_noising_schedule=None,
        image_mean=(),
        image_std=(),
    )
    return StableDiffusion(architecture, params)


def toy_requests(number, seed=0):
    """SampleInputs of the classes in turn, each class with a prompt of its own."""
    labels = np.arange(number) % CLASSES
    prompts = normal(1, CLASSES, WORDS, WIDTH)
    return SampleInputs(
        condition=Condition(prompts[labels], jnp.zeros((number, WORDS, WIDTH)), None),
        latents=normal(100 + seed, number, SIDE, SIDE, CHANNELS),
        labels=jnp.asarray(labels),
        rows=jnp.asarray(labels),
        keys=step_keys(np.arange(number) + 100 * seed),
    )


def toy_classifier(params, inputs):
    """Logits [B, CLASSES] of grey images [B, SIDE, SIDE, 1]."""
    hidden = jnp.tanh(inputs.reshape(len(inputs), -1) @ params["hidden"])
    return hidden @ params["head"]


def toy_classifier_params():
    return {"hidden": normal(11, SIDE * SIDE, 8, scale=0.5), "head": normal(12, 8, CLASSES)}


to_examples = partial(ClassifierInput(CLASSES, SIDE, channels=1).examples, label_smoothing=0.1)
