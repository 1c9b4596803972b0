"""Captioners of transformers. They need PyTorch, which the extra `[caption]` installs."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from utilgen_jax.data.images import plain_image
from utilgen_jax.errors import InputError

# Models that caption an image without a text prompt.
MODEL_TYPES = ("blip", "blip-2", "git", "vision-encoder-decoder")
MAX_TOKENS = 16  # as in arXiv 2307.08526


def check_image_to_text(name: str) -> None:
    """Checks that a captioner can be loaded, by its config alone.

    Args:
        name: see `load_image_to_text`.

    Raises:
        InputError: see `load_image_to_text`.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"captioner {name!r} needs PyTorch: `pip install -e .[caption]`; or use the captioner 'glyphs', or a file "
            "of captions"
        )
    from transformers import AutoConfig

    try:
        model_type = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    except Exception as error:  # Broken files raise exceptions of many kinds.
        raise _cannot_load(name, error) from error
    if model_type not in MODEL_TYPES:
        raise InputError(f"captioner {name!r} has type {model_type!r}, which is not one of {', '.join(MODEL_TYPES)}")


def load_image_to_text(name: str) -> Callable[[np.ndarray, Sequence[str]], list[str]]:
    """Loads a captioner with greedy decoding of up to `MAX_TOKENS` tokens, on a GPU if PyTorch has one.

    Reads only safetensors and runs no code of the repository.

    Args:
        name: hub id or folder of a model of one of `MODEL_TYPES`, with its tokenizer and image processor.

    Returns:
        A `Captioner` that ignores the class names.

    Raises:
        InputError: PyTorch is missing, or the model does not exist or has another type.
    """
    check_image_to_text(name)
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    try:
        # Always Pillow's, not torchvision's: the same pixels on every machine.
        image_processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False, backend="pil")
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=dtype
        )
    except Exception as error:  # The Rust readers of tokenizers and safetensors raise bare exceptions.
        raise _cannot_load(name, error) from error
    model = model.to(device).eval()

    def caption(images: np.ndarray, class_names: Sequence[str]) -> list[str]:
        del class_names
        grey = images.shape[-1] == 1
        opened = [plain_image(Image.fromarray(image[..., 0] if grey else image), 3) for image in images]
        pixels = image_processor(opened, return_tensors="pt").pixel_values.to(device, dtype)
        with torch.inference_mode():
            tokens = model.generate(pixel_values=pixels, max_new_tokens=MAX_TOKENS, do_sample=False, num_beams=1)
        return tokenizer.batch_decode(tokens, skip_special_tokens=True)

    return caption


def _cannot_load(name: str, error: Exception) -> InputError:
    return InputError(
        f"captioner {name!r} cannot be loaded: {error}\n"
        "--config.prompts.captions takes another one, such as 'tones', or a file of captions"
    )
