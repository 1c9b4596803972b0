"""Real pictures, how they are split, prompts, and the synthetic pool on disk."""

from utilgen_jax.data.image_source import ImageSource, Sources
from utilgen_jax.data.pool import Pool, PoolRecord, PoolWriter, read_pool, update_records
from utilgen_jax.data.prompts import caption_prompts, class_prompts
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import FewShotSplit, Fold, LabelledImages, cross_fit_folds, few_shot

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
