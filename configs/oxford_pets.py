"""Oxford-IIIT Pets from 16 labelled images a class, with Stable Diffusion as the generator.

Real images: tensorflow-datasets' oxford_iiit_pet, 37 breeds of cats and dogs, at 224×224: `--config.data.path` is the
data_dir in which it was prepared as ArrayRecord.

Protocol: 3,680 images to train, about 100 a class (`--config.data.shots=0`: all), and 3,669 to test.

At 40 % of the peak (utilgen_jax/plan) `joint` takes 0.91 hours on one A100, 0.29 on one H100 and 0.19 on v5e:2x4,
`utilgen` 6.6, 2.1 and 1.6.

  python -m utilgen_jax.main --config=configs/oxford_pets.py --config.data.path=DATA_DIR --workdir=runs/oxford_pets
  python -m utilgen_jax.main --config=configs/oxford_pets.py:runlocal --config.data.path=DATA_DIR \
      --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/oxford_pets_local
"""

from ml_collections import ConfigDict

from utilgen_jax.config.presets import RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `method=vanilla,shots=5` or `runlocal`."""
    config = stable_diffusion_config()
    config.data.name = "oxford_iiit_pet"
    config.prompts.template = "a photo of a {class}, a type of pet"
    return apply_variant(config, arg, presets={"runlocal": RUNLOCAL})
