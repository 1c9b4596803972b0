"""Model sizes and training lengths of the pretrained generator.

The component configs have the fields of diffusers' and transformers' `config.json`. The training takes less than 45
minutes on 2 CPU cores, and all weights take less than 8 MB in half precision.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from utilgen_jax.prompts.glyph_vocabulary import IMAGE_SIZE

EMBEDDING_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Training:
    """Training config of a component.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step.
        learning_rate: AdamW's peak.
        ema_decay: decay of the exponential moving average of the parameters; 0 for none.
    """

    steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float = 0.0


CORPUS_SIZE = 60_000
CLIP_TRAINING = Training(steps=1000, batch_size=128, learning_rate=1e-3)
AUTOENCODER_TRAINING = Training(steps=1500, batch_size=32, learning_rate=2e-3)
UNET_TRAINING = Training(steps=4000, batch_size=64, learning_rate=1e-3, ema_decay=0.998)
SNR_GAMMA = 5.0
# Probabilities of training the UNet without caption and without image, so that it can be conditioned on either.
CAPTION_DROPOUT = 0.1
IMAGE_DROPOUT = 0.6


def text_encoder_config(vocab_size: int, max_length: int, eos_token_id: int) -> dict[str, Any]:
    """Returns the `config.json` of the CLIP text encoder."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocab_size,
        "hidden_size": EMBEDDING_SIZE,
        "intermediate_size": 4 * EMBEDDING_SIZE,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": max_length,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": EMBEDDING_SIZE,
        "bos_token_id": eos_token_id - 1,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
    }


IMAGE_ENCODER_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "model_type": "clip_vision_model",
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_size": EMBEDDING_SIZE,
    "intermediate_size": 4 * EMBEDDING_SIZE,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": EMBEDDING_SIZE,
}

AUTOENCODER_CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 32],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": IMAGE_SIZE,
    # Replaced after training by 1 / (standard deviation of the latents).
    "scaling_factor": 1.0,
    "force_upcast": False,
}

UNET_CONFIG: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "cross_attention_dim": EMBEDDING_SIZE,
    # The number of heads in each block; diffusers keeps the historic name.
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 2 * EMBEDDING_SIZE,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
}

SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

IMAGE_NOISING_SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": False,
}

IMAGE_PREPROCESSING: dict[str, Any] = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": IMAGE_SIZE},
    "do_center_crop": True,
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableUnCLIPImg2ImgPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
    "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "vae": ["diffusers", "AutoencoderKL"],
}
