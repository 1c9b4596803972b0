"""Handwritten digits from a few labelled pictures: the embedded default, nothing to download.

Real pictures: scikit-learn's digits, 8×8, grey, 10 classes. `shots` pictures a class are labelled; every other picture
is test, and read once, by the final evaluation. Generator: the embedded glyph world, which knows printed digits and no
handwriting.

  python -m utilgen_jax.main --config=configs/digits.py --workdir=runs/digits
  python -m utilgen_jax.main --config=configs/digits.py:method=vanilla,shots=5,seed=1 --workdir=runs/vanilla
"""

from ml_collections import ConfigDict

from utilgen_jax.config import apply_variant, default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `method=vanilla,shots=5`."""
    return apply_variant(default_config(), arg)
