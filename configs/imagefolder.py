"""Your own images, with Stable Diffusion as the generator.

Real images: `--config.data.path` is a folder with `train/<class>/*.png` or `*.jpg` and perhaps `test/<class>/`, grey
or RGB, any size. The folders' names are the class names in the prompts; `--config.data.class_names=a,b` gives better
words, several of a class as `crane bird|crane`. `shots` images a class are labelled; without a test folder every other
image is test. Generator: a hub id, or `--config.generator.checkpoint=FOLDER` in diffusers' format.

Ten classes of 16 labelled images take the hours that cifar.py tells.

  python -m utilgen_jax.main --config=configs/imagefolder.py --config.data.path=my_images --workdir=runs/mine

`runlocal` tries the same path in minutes on a laptop; give it a small checkpoint. The embedded one,
`--config.generator.checkpoint=glyphs`, knows nothing but printed digits: with it only the plumbing is tried, and
the pool is nonsense.

  python -m utilgen_jax.main --config=configs/imagefolder.py:runlocal --config.data.path=my_images \
      --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/mine_local

`pretrained` is for a small generator that half of your own train images teach, the other half being left for the shots.
It is made in runs/pretrained if it is not there, which takes about 50 minutes:

  python -m utilgen_jax.main --config=configs/imagefolder.py:pretrained --config.data.path=my_images --workdir=runs/mine
"""

from ml_collections import ConfigDict

from utilgen_jax.config.presets import PRETRAINED, RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `runlocal` or `path=my_images,shots=8`."""
    config = stable_diffusion_config()
    config.data.update(source="imagefolder", name="my images")
    return apply_variant(config, arg, presets={"runlocal": RUNLOCAL, "pretrained": PRETRAINED})
