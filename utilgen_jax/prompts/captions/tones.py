"""Captions any image by what can be measured without a model: brightness, contrast, detail and brighter side."""

from collections.abc import Sequence

import numpy as np

from utilgen_jax.data.images import resize, to_float
from utilgen_jax.prompts.glyph_vocabulary import band

SIZE = 32  # side in pixels at which images are measured

# measure -> (value, upper bound) in ascending order; the first bound above the measure counts. Grey levels in [0, 1].
BANDS: dict[str, tuple[tuple[str, float], ...]] = {
    "brightness": (("dark", 0.45), ("medium brightness", 0.6), ("bright", np.inf)),
    "contrast": (("low contrast", 0.12), ("medium contrast", 0.17), ("high contrast", np.inf)),
    "detail": (("soft", 0.055), ("some detail", 0.09), ("much detail", np.inf)),
    "side": (("brighter on the right", -0.05), ("evenly lit", 0.05), ("brighter on the left", np.inf)),
}


def caption_tones(images: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Captions images in the words of `BANDS`; a `Captioner`.

    For example 'dark, low contrast, soft, evenly lit'.

    Args:
        images: uint8 [B, S, S, C], C 1 or 3, any S.
        class_names: ignored.
    """
    del class_names
    grey = (np.asarray(resize(to_float(images), SIZE)).mean(-1) + 1) / 2
    steps = [np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2)]
    half = SIZE // 2
    measures = {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "detail": steps[0] + steps[1],
        "side": grey[:, :, :half].mean((1, 2)) - grey[:, :, half:].mean((1, 2)),
    }
    values = [[band(name, measure, BANDS) for measure in measures[name]] for name in BANDS]
    return [", ".join(of_image) for of_image in zip(*values, strict=True)]
