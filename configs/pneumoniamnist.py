"""PneumoniaMNIST, chest X-rays of children, from 16 labelled images a class; Stable Diffusion as the generator.

Real images: MedMNIST's pneumoniamnist.npz, 28×28, grey, read as it is: `--config.data.path` is the file. Generator: a
hub id, or `--config.generator.checkpoint=FOLDER` in diffusers' format. Stable Diffusion has seen few X-rays.

Protocol (MedMNIST v2, arXiv 2110.14795): 4,708 images to train, 524 to validate, 624 to test, by a ResNet-18 among
others. The validation images stay unused: ours come out of the shots.

  python -m utilgen_jax.main --config=configs/pneumoniamnist.py --config.data.path=FILE.npz --workdir=runs/lungs
  python -m utilgen_jax.main --config=configs/pneumoniamnist.py:runlocal --config.data.path=FILE.npz \
      --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/lungs_local

`pretrained` is for a small generator of X-rays, which half of the train images teach; the shots are of the other half.
It is made in runs/pretrained if it is not there, which takes about 50 minutes:

  python -m utilgen_jax.main --config=configs/pneumoniamnist.py:pretrained,shots=5 --config.data.path=FILE.npz \
      --workdir=runs/lungs_pretrained
"""

from ml_collections import ConfigDict

from utilgen_jax.config.presets import PRETRAINED, RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant

ATTRIBUTES = ("of a small child|of a child", "bright|dark", "high contrast|low contrast", "sharp|blurred|grainy")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `method=vanilla,shots=5` or `runlocal`."""
    config = stable_diffusion_config()
    config.data.update(source="npz", name="pneumoniamnist", image_size=28, channels=1)
    config.data.class_names = ("normal", "pneumonia")
    config.prompts.update(template="a chest X-ray, {class}", attributes=ATTRIBUTES)
    # Left and right are not alike in a chest, and 28 pixels leave little to crop.
    config.classifier.update(name="resnet18", optimizer="adamw", learning_rate=3e-3)
    config.classifier.update(max_shift=2, crop_area=1.0, flip=False)
    for section in ("difficulty", "textual_inversion"):
        config[section].flip = False
    return apply_variant(config, arg, presets={"runlocal": RUNLOCAL, "pretrained": PRETRAINED})
