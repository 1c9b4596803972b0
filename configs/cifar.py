"""CIFAR-10 from 16 labelled pictures a class, with Stable Diffusion as the generator.

Real pictures: tensorflow-datasets' cifar10, 32×32, RGB; `shots` pictures a class come out of its train split, its test
split is read once, by the final evaluation. A data set that tfds has already prepared as ArrayRecord is read without
TensorFlow: `--config.data.path` is tfds' data_dir. Generator: a hub id, or `--config.generator.checkpoint=FOLDER` in
diffusers' format.

  python -m utilgen_jax.main --config=configs/cifar.py --config.data.path=DATA_DIR --workdir=runs/cifar

`runlocal` tries the same path in a minute or two on a laptop; give it a small checkpoint:

  python -m utilgen_jax.main --config=configs/cifar.py:runlocal --config.data.path=DATA_DIR \
      --config.generator.checkpoint=FOLDER --workdir=runs/cifar_local
"""

from ml_collections import ConfigDict

from utilgen_jax.config import RUNLOCAL, apply_variant, default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `runlocal` or `method=vanilla,shots=5`."""
    config = default_config()
    config.data.update(source="tfds", name="cifar10", shots=16, image_size=32, channels=3)
    config.generator.update(
        checkpoint="stabilityai/stable-diffusion-2-1-base",
        dtype="bfloat16",
        prompt="a photo of a {class}",
        image_size=512,
        steps=30,
        batch_size=16,
    )
    config.classifier.update(width=64, steps=3000, batch_size=128, max_shift=4)
    config.utility.update(steps=1000)
    return apply_variant(config, arg, presets={"runlocal": RUNLOCAL})
