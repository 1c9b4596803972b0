"""Handwritten digits from a few labelled images: the embedded default, nothing to download.

Real images: scikit-learn's digits, 8×8, grey, 10 classes. `shots` images a class are labelled; every other image
is test, and read once, by the final evaluation. Generator: the embedded glyph domain, which knows printed digits and no
handwriting.

  python -m utilgen_jax.main --config=configs/digits.py --workdir=runs/digits
  python -m utilgen_jax.main --config=configs/digits.py:method=vanilla,shots=5,seed=1 --workdir=runs/vanilla

`runlocal` is a smaller run yet, too small for good images or weights.

  python -m utilgen_jax.main --config=configs/digits.py:runlocal --workdir=runs/digits_local

`polysemy` gives each class two words, its own name and the name of a digit that looks like it: half of its synthetic
images show another class, as 'crane' shows birds and machines. Which word is right the methods have to find out; with
`prompts.choose_words` they do before they make their pool.

  python -m utilgen_jax.main --config=configs/digits.py:polysemy,method=vanilla,shots=5 --workdir=runs/polysemy
  python -m utilgen_jax.main --config=configs/digits.py:polysemy,method=vanilla,shots=5 \
      --config.prompts.choose_words=True --workdir=runs/polysemy_chosen

`long_tail` has 20 labelled images of the first class and one of the last; `label_noise` redraws the labels of 40 % of
the labelled images. With the protocols these are the regimes of the map in configs/README.md.
"""

from typing import Any

from ml_collections import ConfigDict

from utilgen_jax.config.schema import apply_variant, default_config

RUNLOCAL = {
    "generator.steps": 4,
    "pool.images_per_class": 10,
    "lora.steps": 30,
    "difficulty.steps": 50,
    "ensemble.members": 1,
    "textual_inversion.steps": 20,
    "dpo.rounds": 1,
    "dpo.steps": 10,
    "per_image.steps": 2,
    "joint.plain_steps": 30,
    "joint.steps": 20,
    "joint.gate_images": 5,
    "joint.gate_steps": 50,
    "classifier.steps": 100,
    "valuation.plain_steps": 30,
    "valuation.steps": 15,
}

# Digits that look like each other, each way.
MISTAKEN = {"zero": "eight", "one": "seven", "two": "three", "four": "nine", "five": "six"}
MISTAKEN |= {other: name for name, other in MISTAKEN.items()}
# Twenty labelled images of the first class, one of the last, filled up with synthetic ones.
LONG_TAIL = {
    "data.shots": 20,
    "data.imbalance_factor": 20,
    "pool.fill_to": 60,
    "classifier.loss": "balanced_softmax",
}
LABEL_NOISE = {"data.label_noise": 0.4}
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POLYSEMY = {"data.class_names": tuple(f"{name}|{MISTAKEN[name]}" for name in _NAMES)}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `method=vanilla,shots=5` or `runlocal`."""
    presets: dict[str, dict[str, Any]]
    presets = {"runlocal": RUNLOCAL, "polysemy": POLYSEMY, "long_tail": LONG_TAIL, "label_noise": LABEL_NOISE}
    return apply_variant(default_config(), arg, presets)
