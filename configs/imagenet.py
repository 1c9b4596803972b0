"""ImageNet-1k from 16 labelled images a class, or by a variant `imagenet100` or `imagenet_lt`; Stable Diffusion.

Real images: tensorflow-datasets' imagenet2012 or imagenet_lt: `--config.data.path` is the data_dir in which it was
prepared as ArrayRecord. tfds calls the classes by numbers of WordNet's; `--config.data.classes_file` has words, lines
such as `n01440764 tench`; classes that it does not list are left out. ILSVRC's LOC_synset_mapping.txt is such a file;
where two classes have the same word in it (crane, maillot), change one.

  imagenet100  100 classes, at 224×224, those of a file: `grep -F -f imagenet100.txt LOC_synset_mapping.txt > words.txt`
               makes it of the published list (github.com/HobbitLong/CMC; Tian et al. 2020, arXiv 1906.05849)
  imagenet_lt  long tail (Liu et al. 2019, arXiv 1904.05160): 115,846 images to train, 1,280 to 5 a class

Protocol: ImageNet's 50,000 validation images to test. UtilGen (arXiv 2510.24262) reports small parts of ImageNet-1k
and -100, with synthetic images only (`--config.classifier.synthetic_fraction=1`) and with real ones beside them.
Augmented conditioning (arXiv 2502.04475, `method=augcond`) fills each class of a long tail to 1,280 images and trains
a ResNeXt-50 with balanced softmax, on batches of half real and half synthetic images. Methods other than the baselines
(`real`, `randaugment`, `mixup`, `cutmix`, `vanilla`), which read images as they need them, hold all training images in
a device's memory: for 1,000 classes they are 64×64 here, and the long tail is filled to 100.

At 40 % of the peak (utilgen_jax/plan) `joint` on all 1,000 classes takes 18 hours on one A100, 5.8 on one H100 and
3.6 on v5e:2x4, `utilgen` 150, 49 and 38.

  python -m utilgen_jax.main --config=configs/imagenet.py:imagenet100 --config.data.path=DATA_DIR \
      --config.data.classes_file=words.txt --workdir=runs/imagenet100
  python -m utilgen_jax.main --config=configs/imagenet.py:runlocal --config.data.path=DATA_DIR \
      --config.data.classes_file=words.txt --config.generator.checkpoint=SMALL_FOLDER --workdir=runs/imagenet_local
"""

from typing import Any

from ml_collections import ConfigDict

from utilgen_jax.config.presets import RUNLOCAL, stable_diffusion_config
from utilgen_jax.config.schema import apply_variant

IMAGENET100: dict[str, Any] = {"data.image_size": 224}
IMAGENET_LT: dict[str, Any] = {
    "data.name": "imagenet_lt",
    "data.shots": 0,
    "pool.fill_to": 100,
    "classifier.name": "resnext50",
    "classifier.synthetic_fraction": 0.5,
    "augcond.guidance_scale": 2.0,
    "classifier.loss": "balanced_softmax",
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` is a variant such as `imagenet100,method=vanilla`, or `runlocal`."""
    config = stable_diffusion_config()
    config.data.update(name="imagenet2012", image_size=64)
    presets = {"imagenet100": IMAGENET100, "imagenet_lt": IMAGENET_LT, "runlocal": RUNLOCAL}
    return apply_variant(config, arg, presets=presets)
