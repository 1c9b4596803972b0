"""Stanford Cars from 16 labelled images a class, with Stable Diffusion as the generator.

Real images: tensorflow-datasets' cars196, 196 classes of make, model and year, at 224×224: `--config.data.path` is
the data_dir in which it was prepared as ArrayRecord. Where tfds' download fails, since its address is gone
(github.com/tensorflow/datasets/issues/5053), a copy sorted into train/<class>/ and test/<class>/ is read with
`--config.data.source=imagefolder --config.data.path=FOLDER`.

Protocol: 8,144 images to train, about 40 a class (`--config.data.shots=0`: all), and 8,041 to test.

At 40 % of the peak (utilgen_jax/plan) `joint` takes 3.8 hours on one A100, 1.2 on one H100 and 0.76 on v5e:2x4,
`utilgen` 31, 9.8 and 7.5.

  python -m utilgen_jax.main --config=configs/stanford_cars.py --config.data.path=DATA_DIR --workdir=runs/stanford_cars
  python -m utilgen_jax.main --config=configs/stanford_cars.py:runlocal --config.data.path=DATA_DIR \
      --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/stanford_cars_local
"""

from ml_collections import ConfigDict

from utilgen_jax.config.presets import RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `method=vanilla,shots=5` or `runlocal`."""
    config = stable_diffusion_config()
    config.data.name = "cars196"
    config.prompts.template = "a photo of a {class}, a car"
    return apply_variant(config, arg, presets={"runlocal": RUNLOCAL})
