"""Caltech-101 from 16 labelled images a class, with Stable Diffusion as the generator.

Real images: tensorflow-datasets' caltech101, 102 classes with the background's, at 224×224: `--config.data.path` is
the data_dir in which it was prepared as ArrayRecord.

Protocol: 30 images a class to train, drawn once by tfds, all others to test. UtilGen (arXiv 2510.24262) reports it
with synthetic images only (`--config.classifier.synthetic_fraction=1`) and with real ones beside them; augmented
conditioning (arXiv 2502.04475) with 16 synthetic images a class and a linear head on a frozen ResNet-50
(`--config.pool.images_per_class=16 --config.classifier.trainable=head --config.classifier.pretrained=FILE`).

At 40 % of the peak (utilgen_jax/plan) `joint` takes 2.1 hours on one A100, 0.66 on one H100 and 0.42 on v5e:2x4,
`utilgen` 17, 5.2 and 4.0.

  python -m utilgen_jax.main --config=configs/caltech101.py --config.data.path=DATA_DIR --workdir=runs/caltech101
  python -m utilgen_jax.main --config=configs/caltech101.py:runlocal --config.data.path=DATA_DIR \
      --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/caltech101_local
"""

from ml_collections import ConfigDict

from utilgen_jax.config.presets import RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `method=vanilla,shots=5` or `runlocal`."""
    config = stable_diffusion_config()
    config.data.name = "caltech101"
    return apply_variant(config, arg, presets={"runlocal": RUNLOCAL})
