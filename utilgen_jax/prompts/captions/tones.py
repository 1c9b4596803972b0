"""Says of any image what can be measured without a model: brightness, contrast, detail, and its brighter side."""

from collections.abc import Sequence

import numpy as np

from utilgen_jax.data.images import resize, to_float
from utilgen_jax.pretraining.vocabulary import band

SIZE = 32  # pixels a side at which it is measured

# measure -> (phrase, upper bound) in rising order, of grey levels in [0, 1]: the first whose bound exceeds the measure.
BANDS: dict[str, tuple[tuple[str, float], ...]] = {
    "brightness": (("dark", 0.45), ("medium brightness", 0.6), ("bright", np.inf)),
    "contrast": (("low contrast", 0.12), ("medium contrast", 0.17), ("high contrast", np.inf)),
    "detail": (("soft", 0.055), ("some detail", 0.09), ("much detail", np.inf)),
    "side": (("brighter on the right", -0.05), ("evenly lit", 0.05), ("brighter on the left", np.inf)),
}


def caption_tones(images: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Captions images in the words of `BANDS`, such as 'dark, low contrast, soft, evenly lit'; a `Captioner`.

    Args:
        images: uint8 [B, S, S, C], C 1 or 3, any S.
        class_names: B words, which say nothing here.
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
    said = [[band(name, value, BANDS) for value in measures[name]] for name in BANDS]
    return [", ".join(phrases) for phrases in zip(*said, strict=True)]
