"""Describable Textures (DTD) from 16 labelled images a class, with Stable Diffusion as the generator.

Real images: tensorflow-datasets' dtd, 47 textures, at 224×224: `--config.data.path` is the data_dir in which it was
prepared as ArrayRecord.

Protocol: ten partitions into training, validation and test images, 40 a class each, and the mean over them; tfds has
the first alone. Its validation images stay unused: ours come out of the shots.

At 40 % of the peak (utilgen_jax/plan) `joint` takes 1.1 hours on one A100, 0.35 on one H100 and 0.22 on v5e:2x4,
`utilgen` 8.2, 2.6 and 2.0.

  python -m utilgen_jax.main --config=configs/dtd.py --config.data.path=DATA_DIR --workdir=runs/dtd
  python -m utilgen_jax.main --config=configs/dtd.py:runlocal --config.data.path=DATA_DIR \
      --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/dtd_local
"""

from ml_collections import ConfigDict

from utilgen_jax.config.presets import RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `method=vanilla,shots=5` or `runlocal`."""
    config = stable_diffusion_config()
    config.data.name = "dtd"
    config.prompts.template = "a photo of a {class} texture"
    return apply_variant(config, arg, presets={"runlocal": RUNLOCAL})
