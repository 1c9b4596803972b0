"""PNG files that say of themselves that they are synthetic, and what they were generated from."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utilgen_jax import __version__
from utilgen_jax.pool.records import PoolRecord

# The term of the International Press Telecommunications Council for images that a trained model has made.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def to_png(pixels: np.ndarray, record: PoolRecord, checkpoint: str) -> bytes:
    """Encodes an image, with text chunks (tEXt, or iTXt where the text is not Latin-1).

    Args:
        pixels: uint8 [H, W, 3].
        record: has class, prompt and seed.
        checkpoint: what the generator was loaded from.
    """
    texts = {
        "Source": "synthetic",
        "DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "Software": f"utilgen_jax {__version__}",
        "checkpoint": checkpoint,
        "class": record.class_name,
        "prompt": record.prompt or "",
        "seed": str(record.seed),
    }
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", pnginfo=info)
    return buffer.getvalue()
