"""Your own pictures, with Stable Diffusion as the generator.

Real pictures: `--config.data.path` is a folder with `train/<class>/*.png` or `*.jpg` and perhaps `test/<class>/`, grey
or RGB, any size. The folders' names are the class names in the prompts; `--config.data.class_names=a,b` gives better
words. `shots` pictures a class are labelled; without a test folder every other picture is test. Generator: a hub id,
or `--config.generator.checkpoint=FOLDER` in diffusers' format.

  python -m utilgen_jax.main --config=configs/imagefolder.py --config.data.path=my_pictures --workdir=runs/mine

`runlocal` tries the same path in a minute or two on a laptop; give it a small checkpoint. The embedded one,
`--config.generator.checkpoint=glyphs`, knows nothing but printed digits: with it only the plumbing is tried, and
the pool is nonsense.

  python -m utilgen_jax.main --config=configs/imagefolder.py:runlocal --config.data.path=my_pictures \
      --config.generator.checkpoint=FOLDER --workdir=runs/mine_local
"""

from ml_collections import ConfigDict

from utilgen_jax.config import RUNLOCAL, apply_variant, default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `runlocal` or `path=my_pictures,shots=8`."""
    config = default_config()
    config.data.update(source="imagefolder", name="my pictures", shots=16, image_size=64, channels=3)
    config.generator.update(
        checkpoint="stabilityai/stable-diffusion-2-1-base",
        dtype="bfloat16",
        prompt="a photo of a {class}",
        image_size=512,
        steps=30,
        batch_size=16,
    )
    config.classifier.update(width=64, steps=3000, batch_size=64, max_shift=4)
    config.utility.update(steps=1000)
    return apply_variant(config, arg, presets={"runlocal": {**RUNLOCAL, "data.image_size": 32}})
