"""The published Stable Diffusion architectures, as the `config.json` files of their checkpoints state them.

They size a model where its checkpoint is not at hand: `python -m utilgen_jax.plan` and the measurements at full size.
Settings that equal the default of `from_config` are left out.
"""

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

_UNET_1: Config = {
    "sample_size": 64,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
_UNET_2: Config = {
    **_UNET_1,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_UNET_UNCLIP: Config = {
    **_UNET_2,
    "sample_size": 96,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 2048,
}
_UNET_XL: Config = {
    "sample_size": 128,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_VAE: Config = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
# OpenAI's CLIP ViT-L/14.
_TEXT_1: Config = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "eos_token_id": 2,
}
# OpenCLIP's ViT-H/14 without its last layer.
_TEXT_2: Config = {
    **_TEXT_1,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
# OpenCLIP's ViT-bigG/14.
_TEXT_XL: Config = {
    **_TEXT_1,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_IMAGE_ENCODER: Config = {
    "model_type": "clip_vision_model",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}
_PNDM: Config = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
_DDIM_V: Config = {**_PNDM, "_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"}
_EULER_TRAILING: Config = {**_PNDM, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
_EULER: Config = {**_PNDM, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
_EULER_ANCESTRAL: Config = {
    **_PNDM,
    "_class_name": "EulerAncestralDiscreteScheduler",
    "timestep_spacing": "trailing",
}
_NOISING: Config = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}

_SD_1: Mapping[str, Config] = {"unet": _UNET_1, "vae": _VAE, "text_encoder": _TEXT_1, "scheduler": _PNDM}
_SD_2: Mapping[str, Config] = {"unet": _UNET_2, "vae": _VAE, "text_encoder": _TEXT_2, "scheduler": _PNDM}

_SD_XL: Mapping[str, Config] = {
    "unet": _UNET_XL,
    "vae": {**_VAE, "scaling_factor": 0.13025, "force_upcast": True},
    "text_encoder": _TEXT_1,
    "text_encoder_2": _TEXT_XL,
    "scheduler": _EULER,
}

# Name, as in `checkpoints.published`, -> component -> its config.json (of a schedule: its scheduler_config.json).
ARCHITECTURES: Mapping[str, Mapping[str, Config]] = {
    "sd14": _SD_1,
    "sd15": _SD_1,
    "sd21": _SD_2,
    "sd21-768": {**_SD_2, "unet": {**_UNET_2, "sample_size": 96}, "scheduler": _DDIM_V},
    "sd21-unclip": {
        **_SD_2,
        "unet": _UNET_UNCLIP,
        "scheduler": _DDIM_V,
        "image_encoder": _IMAGE_ENCODER,
        "image_normalizer": {"embedding_dim": 1024},
        "image_noising_scheduler": _NOISING,
    },
    "sdxl": _SD_XL,
    "sdxl-turbo": {**_SD_XL, "unet": {**_UNET_XL, "sample_size": 64}, "scheduler": _EULER_ANCESTRAL},
    "sd-turbo": {**_SD_2, "scheduler": _EULER_TRAILING},
}
