"""Writes tiny Stable Diffusion checkpoints with torch's diffusers, for tests and for trying configs without a download.

By hand: `python -m tests.diffusers_checkpoint FOLDER [sd15|sd21|unclip|sdxl]`.
"""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

Family = Literal["sd15", "sd21", "unclip", "sdxl"]

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ("t h", "th e</w>", "o f</w>", "p h", "ph o", "d i", "di g", "i t</w>", "dig it</w>")
MAX_LENGTH = 77
TEXT_WIDTH = 32
IMAGE_EMBED_WIDTH = 16
TEXT_WIDTH_2, POOLED_WIDTH, SIZE_WIDTH = 48, 24, 8  # Stable Diffusion XL's


def write_tiny_stable_diffusion(
    folder: Path | str, *, sample_size: int = 8, family: Family = "sd15", seed: int = 0, **unet: Any
) -> Path:
    """Writes a randomly initialised Stable Diffusion of about 400,000 parameters in diffusers' format.

    Args:
        folder: made if it does not exist.
        sample_size: latent height and width; images have twice as many pixels each way.
        family: 'sd15' (convolutional projections, predicts noise), 'sd21' (linear projections, heads per level,
            predicts v), 'unclip' (as sd21, and an image encoder whose embedding conditions the UNet), 'sdxl' (two text
            encoders, the pooled state and sizes, transformers of two layers).
        seed: of the weights.
        **unet: fields of the UNet's config that are to be other ones.

    Returns:
        The folder.
    """
    folder = Path(folder)
    torch.manual_seed(seed)
    tokenizer_folder = folder / "tokenizer"
    vocab_size = write_tiny_tokenizer(tokenizer_folder)
    parts = {
        "tokenizer": CLIPTokenizer.from_pretrained(tokenizer_folder),
        "text_encoder": CLIPTextModel(_text_config(vocab_size, family)),
        "vae": AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=2 * sample_size,
            scaling_factor=0.18215,
        ),
        "unet": UNet2DConditionModel(**_unet_config(sample_size, family) | unet),
        "scheduler": _scheduler(family),
    }
    if family == "sdxl":
        write_tiny_tokenizer(folder / "tokenizer_2", pad_token="!")
        parts |= {
            "tokenizer_2": CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            "text_encoder_2": CLIPTextModelWithProjection(_text_config(vocab_size, family, second=True)),
        }
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    elif family == "unclip":
        parts |= _image_parts(sample_size)
        pipeline = StableUnCLIPImg2ImgPipeline(**parts)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            _disturb_constants(part)
    pipeline.save_pretrained(folder)
    # The pipeline writes one `tokenizer.json`; checkpoints on the hub have the older files, so these are tested.
    for its_folder, pad_token in ((tokenizer_folder, END), (folder / "tokenizer_2", "!")):
        if its_folder.is_dir():
            for path in its_folder.iterdir():
                path.unlink()
            write_tiny_tokenizer(its_folder, pad_token)
    return folder


def write_quick_stable_diffusion(folder: Path | str, family: Family = "unclip") -> Path:
    """One on which all rows run and which is quick to compile: unCLIP, with attention in the UNet's middle alone.

    On 'sdxl' run all but those that need an image encoder. Groups of one channel would hide the conditioning on images.
    """
    return write_tiny_stable_diffusion(
        folder,
        family=family,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        norm_num_groups=2,
        attention_head_dim=2,
        transformer_layers_per_block=1,
    )


def write_tiny_tokenizer(folder: Path | str, pad_token: str = END) -> int:
    """Writes CLIP's byte-level BPE tokenizer with a few merges, in the hub's files; returns its vocabulary's size."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    words += ["".join(merge.split()) for merge in MERGES] + [START, END]
    settings = {
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad_token,
    }
    files = {
        "vocab.json": json.dumps({word: index for index, word in enumerate(words)}),
        "merges.txt": "\n".join(["#version: 0.2", *MERGES, ""]),
        "special_tokens_map.json": json.dumps(settings),
        "tokenizer_config.json": json.dumps(
            {**settings, "model_max_length": MAX_LENGTH, "tokenizer_class": "CLIPTokenizer"}
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return len(words)


def _text_config(vocab_size: int, family: Family, second: bool = False) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH_2 if second else TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=3 if second else 2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu" if family == "sd15" or (family == "sdxl" and not second) else "gelu",
        projection_dim=POOLED_WIDTH if second else IMAGE_EMBED_WIDTH,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )


def _unet_config(sample_size: int, family: Family) -> dict:
    config = {
        "sample_size": sample_size,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": TEXT_WIDTH,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
    }
    if family != "sd15":
        config |= {"attention_head_dim": (2, 4), "use_linear_projection": True}
    if family == "sdxl":
        config |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "cross_attention_dim": TEXT_WIDTH + TEXT_WIDTH_2,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_WIDTH,
            "projection_class_embeddings_input_dim": POOLED_WIDTH + 6 * SIZE_WIDTH,
        }
    if family == "unclip":
        # The embedding, and the level of the noise added to it, embedded in as many numbers.
        config |= {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 2 * IMAGE_EMBED_WIDTH,
        }
    return config


def _scheduler(family: Family) -> PNDMScheduler | DDIMScheduler | EulerDiscreteScheduler:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if family == "sd15":
        return PNDMScheduler(**betas, skip_prk_steps=True, set_alpha_to_one=False)
    if family == "sdxl":
        return EulerDiscreteScheduler(**betas, timestep_spacing="leading")
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")


def _image_parts(sample_size: int) -> dict:
    image_size = 2 * sample_size
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=image_size // 4,
        projection_dim=IMAGE_EMBED_WIDTH,
        hidden_act="gelu",
    )
    crop = {"height": image_size, "width": image_size}
    return {
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=crop),
        "image_encoder": CLIPVisionModelWithProjection(vision),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=IMAGE_EMBED_WIDTH),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


def _disturb_constants(module: torch.nn.Module) -> None:
    # Scales of one and biases of zero would hide a parameter that is forgotten or swapped with another.
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim <= 2 and parameter.std(correction=0) == 0:
                parameter.add_(0.1 * torch.randn_like(parameter))


if __name__ == "__main__":
    write_tiny_stable_diffusion(sys.argv[1], family=sys.argv[2] if len(sys.argv) > 2 else "sd15")
