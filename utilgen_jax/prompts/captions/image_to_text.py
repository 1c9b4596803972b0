"""Captioners of transformers. They need PyTorch, which the extra `[caption]` installs."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utilgen_jax.data.images import plain_image
from utilgen_jax.errors import InputError, line_of
from utilgen_jax.runtime.hub import list_files

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
    model_type = _read_model_type(name)
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
    settings = {"trust_remote_code": False, "local_files_only": not _is_on_hub(name)}
    try:
        # Always Pillow's, not torchvision's: the same pixels on every machine.
        image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", **settings)
        tokenizer = AutoTokenizer.from_pretrained(name, **settings)
        model: Any = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, dtype=dtype, **settings)
    except Exception as error:  # The Rust readers of tokenizers and safetensors raise bare exceptions.
        raise _cannot_load(name, line_of(error)) from error
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


def _is_on_hub(name: str) -> bool:
    """Whether a captioner is no folder, and the hub answers that it has it; InputError where it answers otherwise."""
    try:
        return not Path(name).is_dir() and list_files(name, None) is not None
    except InputError as error:
        raise _cannot_load(name, str(error)) from error


def _read_model_type(name: str) -> str:
    """Reads a model's type from its config, without transformers, which takes seconds to import."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    file, is_on_hub = Path(name) / "config.json", _is_on_hub(name)
    try:
        if not Path(name).is_dir():
            file = Path(hf_hub_download(name, "config.json", local_files_only=not is_on_hub))
        return str(json.loads(file.read_text(encoding="utf-8")).get("model_type"))
    except LocalEntryNotFoundError as error:
        by_hand = f"`hf download {name} --local-dir FOLDER` on a machine that can, then pass FOLDER"
        problem = f"not on this machine, and the Hugging Face hub cannot be reached; {by_hand}"
        raise _cannot_load(name, problem) from error
    except Exception as error:  # broken files and names raise exceptions of many kinds
        raise _cannot_load(name, line_of(error)) from error


def _cannot_load(name: str, problem: str) -> InputError:
    return InputError(
        f"captioner {name!r} cannot be loaded: {problem}; --config.prompts.captions takes a folder, another "
        "captioner, such as 'tones', or a file of captions"
    )
