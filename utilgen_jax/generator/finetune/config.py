"""Config sections of the generator's training: denoising loss, LoRA, textual inversion, Diffusion-DPO."""

from __future__ import annotations

import dataclasses
from typing import Self

from utilgen_jax.fields import setting
from utilgen_jax.generator.config import OwnSampling


@dataclasses.dataclass(frozen=True)
class DenoisingConfig:
    """Training by the denoising loss, beside prior images of the generator itself.

    Prior preservation: Ruiz et al. 2023, arXiv 2208.12242. The learning rate is AdamW's peak; see
    `runtime.schedules.warmup_cosine`. `of_images` gives the steps.
    """

    steps: int = setting(300, "optimiser steps", minimum=1)
    epochs: int = setting(0, "passes over the images, which give the steps; 0: as many as steps says", minimum=0)
    batch_size: int = setting(16, "images a step, drawn with replacement", minimum=2)
    prior_fraction: float = setting(
        0.5, "fraction of a batch that the generator itself made (prior preservation)", minimum=0.0, maximum=0.95
    )
    learning_rate: float = setting(1e-3, "AdamW's peak, then cosine decay", minimum=1e-8, maximum=1.0)
    warmup_steps: int = setting(0, "steps up to the peak; 0: the first 5 %", minimum=0)
    snr_gamma: float = setting(5.0, "γ of min-SNR loss weighting; 0: none", minimum=0.0)
    crops: int = setting(0, "square crops drawn of each image at random; 0: the middle one", minimum=0)
    flip: bool = setting(False, "whether crops are mirrored at random")

    @property
    def num_prior(self) -> int:
        """Prior images in a batch; at least one image is of the training set."""
        return min(round(self.batch_size * self.prior_fraction), self.batch_size - 1)

    def of_images(self, number: int) -> Self:
        """The training on so many images, with the steps that its epochs come to."""
        if not self.epochs:
            return self
        return dataclasses.replace(self, steps=-(-self.epochs * number // (self.batch_size - self.num_prior)), epochs=0)


@dataclasses.dataclass(frozen=True)
class LoraConfig(DenoisingConfig, OwnSampling):
    """Low-rank adaptation to the shots, and how its images are sampled."""

    rank: int = setting(4, "rank of the LoRA on the UNet's attention", minimum=1, maximum=1024)
    text_encoder_rank: int = setting(0, "of one on the text encoder's; 0: none", minimum=0, maximum=1024)


@dataclasses.dataclass(frozen=True)
class TextualInversionConfig(DenoisingConfig):
    """The section `textual_inversion`: a learnt token for each class (Gal et al. 2022, arXiv 2208.01618)."""

    steps: int = setting(200, "optimiser steps", minimum=1)
    learning_rate: float = setting(5e-3, "AdamW's peak, then cosine decay", minimum=1e-8, maximum=1.0)


@dataclasses.dataclass(frozen=True)
class DpoConfig:
    """The section `dpo`: rounds of Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908)."""

    rounds: int = setting(2, "rounds, each on a pool of its own", minimum=1)
    steps: int = setting(60, "optimiser steps a round", minimum=1)
    batch_size: int = setting(32, "pairs a step, each at its own timestep and noise", minimum=1)
    micro_batch_size: int = setting(0, "pairs of a step that are worked on at a time; 0: all", minimum=0)
    learning_rate: float = setting(1e-3, "Adam's learning rate", minimum=1e-8, maximum=1.0)
    rank: int = setting(8, "rank of the LoRA on the UNet's attention", minimum=1, maximum=1024)
    beta: float = setting(2000.0, "β: strength of the pull to the round's reference; larger stays nearer", minimum=0.0)
    fraction: float = setting(0.25, "fraction of a class that wins, and that loses", minimum=0.01, maximum=0.5)
