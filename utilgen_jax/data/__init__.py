"""Real images, how they are split, prompts, and the synthetic pool on disk."""

from utilgen_jax.data.image_source import ImageSource, Sources
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import FewShotSplit, Fold, LabelledImages, cross_fit_folds, few_shot
from utilgen_jax.pool.storage import Pool, PoolRecord, PoolWriter, read_pool, update_records
from utilgen_jax.prompts.templates import caption_prompts, class_prompts

__all__ = [
    "FewShotSplit",
    "Fold",
    "ImageSource",
    "LabelledImages",
    "Pool",
    "PoolRecord",
    "PoolWriter",
    "Sources",
    "caption_prompts",
    "class_prompts",
    "cross_fit_folds",
    "few_shot",
    "load_source",
    "read_pool",
    "update_records",
]
