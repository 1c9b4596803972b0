"""Imagenette from 16 labelled images a class, with Stable Diffusion as the generator.

Real images: tensorflow-datasets' imagenette/320px-v2, ten easy classes of ImageNet, at 224×224: `--config.data.path`
is the data_dir in which it was prepared as ArrayRecord.

Protocol: all of train to train on (`--config.data.shots=0`), the validation images to test. Difficulty-controlled
diffusion (arXiv 2411.18109, `method=difficulty`) reports it for ResNet-50, ResNet-101 and ViT-S
(`--config.classifier.name=vit_s`), with real images and with synthetic ones beside them.

At 40 % of the peak (utilgen_jax/plan) `joint` takes 0.4 hours on one A100, 0.13 on one H100 and 0.09 on v5e:2x4,
`utilgen` 2.5, 0.79 and 0.58.

  python -m utilgen_jax.main --config=configs/imagenette.py --config.data.path=DATA_DIR --workdir=runs/imagenette
  python -m utilgen_jax.main --config=configs/imagenette.py:runlocal --config.data.path=DATA_DIR \
      --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/imagenette_local
"""

from ml_collections import ConfigDict

from utilgen_jax.config.presets import RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant

# In the order of tfds' labels, which are numbers of WordNet's: n01440764, n02102040, n02979186, ...
WORDS = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `method=vanilla,shots=5` or `runlocal`."""
    config = stable_diffusion_config()
    config.data.update(name="imagenette/320px-v2", class_names=WORDS)
    return apply_variant(config, arg, presets={"runlocal": RUNLOCAL})
