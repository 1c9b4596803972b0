"""peft's `adapter_config.json`, or the same fields in a file's header: how strong the adapter of each layer is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from utilgen_jax.checkpoints.checkpoint_folder import read_json
from utilgen_jax.checkpoints.lora_names import COMPONENTS, Layer, without_text_prefix
from utilgen_jax.errors import InputError
from utilgen_jax.models.json_fields import (
    NUMBER,
    OFF,
    TRUTH,
    WITHOUT_EFFECT,
    Kind,
    only,
    optional,
    read_fields,
    whole,
)

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
METADATA = "lora_adapter_metadata"  # the key of the file's header


def _by_pattern(kind: Kind) -> Kind:
    def accepts(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(key, str) and kind.accepts(value[key]) for key in value)

    return optional(Kind(f"an object, each value {kind.about}", accepts))


_NONE = only(None, [], {}, False)
# The fields of `adapter_config.json`, see `json_fields`.
ADAPTER_FIELDS: dict[str, Kind] = {
    "peft_type": only("LORA", "LOHA", "LOKR", None),
    "r": whole(1),
    "lora_alpha": NUMBER,
    "alpha": NUMBER,
    "rank_pattern": _by_pattern(whole(1)),
    "alpha_pattern": _by_pattern(NUMBER),
    "use_rslora": TRUTH,
    "use_dora": TRUTH,
    # Others begin by changing the weights of the model itself.
    "init_lora_weights": only(True, False, "gaussian", "eva", "orthogonal"),
    "bias": only("none"),
    "fan_in_fan_out": OFF,
    "lora_bias": OFF,
    "use_qalora": OFF,
    "use_bdlora": OFF,
} | dict.fromkeys(
    "modules_to_save layer_replication trainable_token_indices target_parameters arrow_config kasa_config "
    "monteclora_config velora_config lora_ga_config corda_config alora_invocation_tokens megatron_config".split(),
    _NONE,
)
# Which layers have an adapter, and of which size, the file itself says; the rest is of training.
ADAPTER_FIELDS |= dict.fromkeys(
    "auto_mapping base_model_name_or_path decompose_both decompose_factor ensure_weight_tying eva_config "
    "exclude_modules inference_mode init_weights layers_pattern layers_to_transform loftq_config lora_dropout "
    "megatron_core module_dropout peft_version qalora_group_size rank_dropout rank_dropout_scale revision "
    "runtime_config target_modules task_type use_effective_conv2d".split(),
    WITHOUT_EFFECT,
)


class AdapterConfig:
    """The config of an adapter's file; its fields may begin with the component's name and a dot."""

    def __init__(self, fields: Mapping[str, Any]):
        """Use `read_adapter_config`."""
        self._fields = fields

    def setting(self, component: str, name: str, default: Any = None) -> Any:
        """Returns a field for a component."""
        value = self._fields.get(f"{component}.{name}", self._fields.get(name))
        return default if value is None else value

    def of_layer(self, layer: Layer, fields: tuple[str, ...], patterns: str, default: Any) -> Any:
        """Returns a number of a layer: that of the first pattern that matches, or that of the first of `fields`."""
        names = (layer.name, without_text_prefix(layer.name))
        for pattern, value in self.setting(layer.component, patterns, {}).items():
            # peft's rule for matching patterns with layers.
            if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                return value
        values = [self.setting(layer.component, field) for field in fields]
        return next((value for value in values if value is not None), default)

    def scale(self, layer: Layer, rank: int) -> float:
        """Returns the factor of a layer's adapter of a rank: alpha / rank, or alpha / √rank with `use_rslora`."""
        alpha = self.of_layer(layer, ("lora_alpha", "alpha"), "alpha_pattern", rank)
        return alpha / (math.sqrt(rank) if self.setting(layer.component, "use_rslora", False) else rank)


def read_adapter_config(path: Path) -> AdapterConfig:
    """Reads the config of an adapter's file, which is beside it or in its header; empty if there is none.

    Raises:
        InputError: it cannot be read, or a field is not supported.
    """
    config = path.with_name(PEFT_CONFIG)
    where, fields = str(path), {}
    if path.name == PEFT_FILE and config.is_file():
        where, fields = str(config), read_json(config)
    else:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA, "{}")
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}: its {METADATA} is not JSON ({error}); save it again with diffusers") from error
        if not isinstance(fields, dict):
            raise InputError(f"{path}: its {METADATA} is not a JSON object; save it again with diffusers")
    groups: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        component, _, field = name.rpartition(".")
        groups.setdefault(component, {})[field] = value
    for component, its_fields in groups.items():
        if component in ("", *COMPONENTS):  # that the model has no others is told of their layers
            read_fields(where, ADAPTER_FIELDS, its_fields)
    return AdapterConfig(fields)
