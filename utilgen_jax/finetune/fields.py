"""The settings of the training that are flags of the command."""

from __future__ import annotations

import dataclasses
from typing import Any

from utilgen_jax.fields import Field, section_fields
from utilgen_jax.generator.config import OwnSampling
from utilgen_jax.generator.finetune.config import LoraConfig

# There are no prior images, and nothing is sampled.
_NO_FLAG = ("prior_fraction", *(field.path for field in section_fields(OwnSampling)))
# Where a training of its own wants something else than a small one within a run.
_DEFAULTS: dict[str, Any] = {"steps": 500, "batch_size": 4, "learning_rate": 1e-4, "rank": 16, "snr_gamma": 0.0}


def training_fields() -> list[Field]:
    """Those of `LoraConfig`, with this command's defaults."""
    fields = [field for field in section_fields(LoraConfig) if field.path not in _NO_FLAG]
    return [dataclasses.replace(field, default=_DEFAULTS.get(field.path, field.default)) for field in fields]
