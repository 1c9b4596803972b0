"""Oxford Flowers-102 from its 10 labelled images a class, with Stable Diffusion as the generator.

Real images: tensorflow-datasets' oxford_flowers102 at 224×224: `--config.data.path` is the data_dir in which it was
prepared as ArrayRecord.

Protocol: 10 images a class to train, 10 to validate, 6,149 images to test. The validation images stay unused:
ours come out of the shots. UtilGen (arXiv 2510.24262) reports a data set of flowers with synthetic images only
(`--config.classifier.synthetic_fraction=1`) and with real ones beside them.

At 40 % of the peak (utilgen_jax/plan) `joint` takes 1.4 hours on one A100, 0.44 on one H100 and 0.28 on v5e:2x4,
`utilgen` 11, 3.4 and 2.6.

  python -m utilgen_jax.main --config=configs/flowers102.py --config.data.path=DATA_DIR --workdir=runs/flowers102
  python -m utilgen_jax.main --config=configs/flowers102.py:runlocal --config.data.path=DATA_DIR \
      --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/flowers102_local
"""

from ml_collections import ConfigDict

from utilgen_jax.config.presets import RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `method=vanilla,shots=5` or `runlocal`."""
    config = stable_diffusion_config()
    config.data.update(name="oxford_flowers102", shots=10)
    config.prompts.template = "a photo of a {class}, a type of flower"
    config.pool.images_per_class = 50
    return apply_variant(config, arg, presets={"runlocal": RUNLOCAL})
