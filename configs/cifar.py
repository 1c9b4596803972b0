"""CIFAR-10 or, by the variant `cifar100`, CIFAR-100, from 16 labelled images a class.

Real images: tensorflow-datasets' cifar10 or cifar100 (its 100 fine classes), 32×32, RGB, prepared on first use where
TensorFlow is installed; `--config.data.path` is a data_dir other than ~/tensorflow_datasets. A ResNet-50 sees them at
224×224. Generator: Stable Diffusion 2.1 from the hub, or `--config.generator.checkpoint=sd15`, or FOLDER in diffusers'
format.

At 40 % of the peak (utilgen_jax/plan) `joint` takes 0.4 hours on one A100, 0.13 on one H100 and 0.09 on v5e:2x4,
`utilgen` 2.5, 0.79 and 0.58, the other methods 0.1 to 0.4 on one A100. Memory: utilgen_jax/plan/README.md.

Protocol: 50,000 images to train, 10,000 to test. Long tail (Cui et al. 2019, arXiv 1901.05555): all of the first
class, the last with 1/100 of it: `--config.data.shots=5000 --config.data.imbalance_factor=100` (CIFAR-100: 500).

  python -m utilgen_jax.main --config=configs/cifar.py
  python -m utilgen_jax.main --config=configs/cifar.py:runlocal --config.data.path=DATA_DIR \
      --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/cifar_local
"""

from ml_collections import ConfigDict

from utilgen_jax.config.presets import PRETRAINED, RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant: `cifar100,shots=5`, `runlocal` or `pretrained` (see imagefolder.py)."""
    config = stable_diffusion_config()
    config.data.name = "cifar10"
    presets = {"runlocal": RUNLOCAL, "pretrained": PRETRAINED, "cifar100": {"data.name": "cifar100"}}
    return apply_variant(config, arg, presets)
