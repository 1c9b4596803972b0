"""Config sections of the generator: the checkpoint and how images are sampled from it, and per-image optimisation."""

from __future__ import annotations

import dataclasses

from utilgen_jax.fields import setting

# Names of `models.gradient_checkpointing`; written out, because a config is checked before JAX is imported.
GRADIENT_CHECKPOINTING = ("none", "products", "layers", "blocks")
SCHEDULERS = (
    "ddim",
    "ddpm",
    "pndm",
    "dpmsolver++",
    "dpmsolver++_karras",
    "dpmsolver++_sde",
    "dpmsolver++_sde_karras",
    "unipc",
    "euler",
    "euler_karras",
    "euler_ancestral",
    "heun",
    "lms",
    "lms_karras",
    "lcm",
    "checkpoint",
)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled; static in compiled functions.

    Attributes:
        height, width: pixels, where an image need not be square; 0: `image_size`. No config field.
        strength: part of the way from noise that is walked where images start from others, in (0, 1]. No config field.
        eta: noise of 'ddim' steps, 0 none, 1 as in DDPM. No config field.
        guidance_rescale: see `samplers.guided`. No config field.
    """

    scheduler: str = setting("ddim", "sampler; 'checkpoint' takes the checkpoint's own", choices=SCHEDULERS)
    steps: int = setting(12, "denoising steps an image", minimum=1, maximum=1000)
    guidance_scale: float = setting(2.0, "classifier-free guidance; 1 or less: none", minimum=0.0, maximum=100.0)
    negative_prompt: str = setting("", "prompt that guidance leads away from")
    image_size: int = setting(32, "height and width of generated images, in pixels", minimum=8, maximum=2048)
    batch_size: int = setting(100, "images generated at once", minimum=1)
    height: int = 0
    width: int = 0
    strength: float = 1.0
    eta: float = 0.0
    guidance_rescale: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height or self.image_size, self.width or self.image_size

    @property
    def num_calls(self) -> int:
        """Calls of the UNet an image, from pure noise: 'heun' makes two a step but the last, 'pndm' one more."""
        return self.steps + {"heun": self.steps - 1, "pndm": int(self.steps > 1)}.get(self.scheduler, 0)


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(SamplingConfig):
    """The section `generator`: which checkpoint, and how it is sampled."""

    checkpoint: str = setting(
        "glyphs",
        "glyphs (embedded), sd15, sd21, ..., a diffusers folder (also gs://…, s3://…), or a hub id",
        is_path=True,
    )
    revision: str = setting("", "branch, tag or commit of a hub id; empty: its main branch")
    dtype: str = setting("float32", "type of the generator's activations", choices=("float32", "bfloat16"))
    gradient_checkpointing: str = setting(
        "none", "what training computes again rather than keep in memory", choices=GRADIENT_CHECKPOINTING
    )


@dataclasses.dataclass(frozen=True)
class OwnSampling:
    """Fields of a method's section: how its images are sampled, where its paper says so."""

    sampler_steps: int = setting(0, "denoising steps of its images; 0: generator.steps", minimum=0, maximum=1000)
    guidance_scale: float = setting(
        0.0, "guidance of its images; 0: generator.guidance_scale", minimum=0.0, maximum=100.0
    )

    def of(self, sampling: SamplingConfig) -> SamplingConfig:
        """The sampling of its images; what the section leaves open is the generator's."""
        steps, guidance_scale = self.sampler_steps, self.guidance_scale
        return dataclasses.replace(
            sampling, steps=steps or sampling.steps, guidance_scale=guidance_scale or sampling.guidance_scale
        )


@dataclasses.dataclass(frozen=True)
class PerImageConfig:
    """The section `per_image`: a prompt and a starting noise of each image's own (UtilGen's instance level)."""

    steps: int = setting(5, "Adam steps on each image's prompt", minimum=1)
    learning_rate: float = setting(0.02, "Adam's learning rate for the prompt", minimum=1e-8, maximum=10.0)
    sampler_steps: int = setting(4, "denoising steps to the image whose utility is measured", minimum=1, maximum=1000)
    differentiable_steps: int = setting(1, "last denoising steps through which gradients flow", minimum=1)
    clip_weight: float = setting(0.5, "weight of the CLIP distance to the class prompt (λ in UtilGen)", minimum=0.0)
    clip: str = setting(
        "", "hub id or folder of the CLIP that measures it; empty: the checkpoint's own image encoder", is_path=True
    )
    micro_batch_size: int = setting(0, "images of a batch that are worked on at a time; 0: all", minimum=0)
    inversion_steps: int = setting(1, "golden noise: DDIM steps taken forth and back, of generator.steps", minimum=1)
    denoising_guidance: float = setting(0.0, "golden noise: guidance forth; 0: generator.guidance_scale", minimum=0.0)
    inversion_guidance: float = setting(1.0, "golden noise: guidance of the inversion", minimum=0.0)
