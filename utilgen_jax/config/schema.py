"""The configuration: its sections, its defaults, and how it is read, written and compared.

A section is declared once, as a frozen dataclass beside the code that takes it; each of its fields is a
`fields.setting` with default, help text, bounds and choices. A config file starts from `default_config()`, sets fields,
and ends with `apply_variant(config, arg)`; `validation.checked` makes a typed `Config` of the result. Nothing here
touches a device, so mistakes are reported before JAX is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.config.protocols import PROTOCOLS, conflicts
from utilgen_jax.data.config import DataConfig
from utilgen_jax.errors import InputError, nearest
from utilgen_jax.fields import Field, section_fields, setting
from utilgen_jax.generator.config import GeneratorConfig
from utilgen_jax.methods import METHODS, SECTIONS
from utilgen_jax.pool.config import PoolConfig
from utilgen_jax.prompts.config import PromptConfig
from utilgen_jax.runtime.config import ParallelConfig
from utilgen_jax.runtime.paths import normalized
from utilgen_jax.valuation.config import ValuationConfig

Section = TypeVar("Section")

BASELINES = ("vanilla",)


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration; `validation.checked` makes it.

    Attributes:
        data, generator, prompts, pool, classifier, valuation, parallel: sections that every run reads.
        method_sections: sections of single methods by name, such as "dpo"; `section` finds one by its type.
    """

    method: str = setting("joint", "what is added to the real images", choices=tuple(METHODS))
    baselines: tuple[str, ...] = setting(("vanilla",), "methods trained beside it and real only", choices=BASELINES)
    also_synthetic_only: bool = setting(True, "also test classifiers of synthetic images alone", may_change=True)
    seed: int = setting(0, "the one random seed: split, pool, classifiers", minimum=0, maximum=2**31 - 1)
    log_every_steps: int = setting(50, "training steps a line of metrics.jsonl, their mean", minimum=1, may_change=True)
    checkpoint_every_minutes: float = setting(
        5.0, "between two saves of a training's state; 0: after every step", minimum=0.0, may_change=True
    )
    data: DataConfig = DataConfig()
    generator: GeneratorConfig = GeneratorConfig()
    prompts: PromptConfig = PromptConfig()
    pool: PoolConfig = PoolConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    valuation: ValuationConfig = ValuationConfig()
    parallel: ParallelConfig = ParallelConfig()
    method_sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def section(self, kind: type[Section]) -> Section:
        """The section of a method's own, by its type, such as `DpoConfig`."""
        (found,) = [section for section in self.method_sections.values() if type(section) is kind]
        return found


_COMMON_SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "generator": GeneratorConfig,
    "prompts": PromptConfig,
    "pool": PoolConfig,
    "classifier": ClassifierConfig,
    "valuation": ValuationConfig,
    "parallel": ParallelConfig,
}
# Section name -> its dataclass; those of single methods come last.
ALL_SECTIONS: Mapping[str, type] = {**_COMMON_SECTIONS, **SECTIONS}
FIELDS: Mapping[str, Field] = {
    field.path: field
    for fields in (
        section_fields(Config),
        *(section_fields(section, f"{name}.") for name, section in ALL_SECTIONS.items()),
    )
    for field in fields
}

_UNKNOWN = Field("", None, "")

# Old section or field -> new one; an old name is refused with the new one in the message.
RENAMED: Mapping[str, str] = {
    "adaptation": "lora",
    "captions.source": "prompts.captions",
    "conditioning.strength": "augcond.strength",
    "conditioning.way": "augcond.mix_strategy",
    "consensus": "ensemble",
    "difficulty.deviation": "difficulty.std",
    "difficulty.lora_rank": "difficulty.rank",
    "generator.phrase_chance": "prompts.attribute_probability",
    "generator.phrases": "prompts.attributes",
    "generator.prompt": "prompts.template",
    "instance": "per_image",
    "inversion": "textual_inversion",
    "joint.painted": "joint.num_generated",
    "joint.learning_rate": "joint.attribute_learning_rate",
    "joint.weight_decay": "joint.attribute_weight_decay",
    "preference": "dpo",
    "utility": "valuation",
    "valuation.label_strength": "saflex.label_probability",
    "valuation.temperature": "saflex.temperature",
}

# What may stand in a variant string, `--config=configs/digits.py:method=vanilla,shots=5`, and the field it sets.
VARIANTS: Mapping[str, str] = {
    "method": "method",
    "seed": "seed",
    "shots": "data.shots",
    "path": "data.path",
    "checkpoint": "generator.checkpoint",
    "images": "pool.images_per_class",
    "steps": "classifier.steps",
    "folds": "valuation.folds",
}


class ConfigError(InputError):
    """Every problem of a configuration at once.

    Attributes:
        problems: one message each; the exception's text is all of them, one a line.
        config: the config as far as it could be made, so that its other mistakes can be reported too; or None.
    """

    def __init__(self, problems: Iterable[str], config: ConfigDict | None = None):
        """Keeps the messages and joins them."""
        self.problems = list(problems)
        self.config = config
        super().__init__("\n".join(self.problems))


def default_config() -> ConfigDict:
    """Returns the defaults, for a config file to change.

    Neither type-safe nor locked: `validation.validate` finds a config file's mistakes, all at once.
    """
    return from_flat({path: field.default for path, field in FIELDS.items()})


def from_flat(values: Mapping[str, Any]) -> ConfigDict:
    """Builds a ConfigDict from {dotted path: value}; the inverse of `flatten`."""
    config = ConfigDict(type_safe=False)
    for path, value in values.items():
        set_field(config, path, value)
    return config


def build_config(values: Mapping[str, Any]) -> Config:
    """Builds a `Config` from {dotted path: value} of all `FIELDS`, which are valid."""
    top = {path: value for path, value in values.items() if "." not in path}
    sections = {
        name: kind(**{field.path: values[f"{name}.{field.path}"] for field in section_fields(kind)})
        for name, kind in ALL_SECTIONS.items()
    }
    common = {name: sections[name] for name in _COMMON_SECTIONS}
    return Config(**top, **common, method_sections={name: sections[name] for name in SECTIONS})


def flatten(config: Config | ConfigDict) -> dict[str, Any]:
    """Returns {dotted path: value} of a `Config`'s fields, or of every leaf of a ConfigDict, known or not."""
    if isinstance(config, Config):
        top = {field.path: getattr(config, field.path) for field in section_fields(Config)}
        sections = {name: config.method_sections.get(name) or getattr(config, name) for name in ALL_SECTIONS}
        fields = {
            f"{name}.{field.path}": getattr(section, field.path)
            for name, section in sections.items()
            for field in section_fields(type(section))
        }
        return top | fields

    def leaves(node: ConfigDict, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, ConfigDict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(config, ""))


def set_field(config: ConfigDict, path: str, value: Any) -> None:
    """Sets the field with this dotted path, making its section if there is none."""
    *sections, name = path.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict(type_safe=False)
        config = config[section]
    config[name] = value


def unknown_field(path: str) -> str:
    """Says that there is no such field, and its new name or the nearest valid one."""
    section, _, name = path.rpartition(".")
    renamed = RENAMED.get(path) or (f"{RENAMED[section]}.{name.removeprefix('lora_')}" if section in RENAMED else "")
    if renamed in FIELDS:
        return f"config.{path}: is now called config.{renamed}"
    return f"config.{path}: there is no such field; the nearest valid name is config.{nearest(path, FIELDS)}"


def choice_problems(flag: str, given: str | Iterable[str] | None, valid: Iterable[str]) -> list[str]:
    """Lists, for each word of a flag's value that is not valid, what is wrong, with the nearest valid word."""
    valid = tuple(valid)
    return [
        f"--{flag}={word}: is not one of {', '.join(valid)}; the nearest is {nearest(word, valid)}"
        for word in ([given] if isinstance(given, str) else given or ())
        if word not in valid
    ]


def parse_value(field: Field, text: str) -> Any:
    """Reads a field's value from the command line.

    A tuple is words with commas between them, `cat,dog`, or a Python literal, `('a, b', 'c')`.

    Raises:
        InputError: the text is not of the field's type.
    """
    if isinstance(field.default, str):
        return text
    if isinstance(field.default, bool):
        if text.lower() not in ("true", "false"):
            raise InputError(f"config.{field.path}: expected True or False, got {text!r}")
        return text.lower() == "true"
    if isinstance(field.default, tuple):
        if text.startswith(("(", "[")):
            try:
                return tuple(ast.literal_eval(text))
            except (ValueError, SyntaxError, TypeError):
                raise InputError(f"config.{field.path}: cannot read {text!r}; write it as a,b or ('a', 'b')") from None
        return tuple(word.strip() for word in text.split(",") if word.strip())
    try:
        return type(field.default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(field.default, int) else "a number"
        raise InputError(f"config.{field.path}: expected {kind}, got {text!r}") from None


def apply_variant(config: ConfigDict, arg: str, presets: Mapping[str, Mapping[str, Any]] | None = None) -> ConfigDict:
    """Applies a variant string such as `runlocal,method=vanilla,shots=5` to the config and returns it.

    Args:
        config: changed in place.
        arg: comma-separated `key=value` pairs (keys of `VARIANTS`) and names of presets; may be empty.
        presets: {name: {dotted path: value}} that this config file offers; they are applied before the protocols,
            which every config offers, and these before the pairs.

    Raises:
        ConfigError: lists every unknown key or preset, with the nearest valid name, and every unreadable value.
    """
    presets = {**(presets or {}), **PROTOCOLS}
    values: dict[str, Any] = {}
    parts = [part for part in (part.strip() for part in arg.split(",")) if part]
    problems = [f"variant {conflict}" for conflict in conflicts(parts)]
    # A protocol holds whatever preset it stands beside.
    for part in sorted(parts, key=lambda part: part in PROTOCOLS):
        key, equals, text = part.partition("=")
        if equals and key in VARIANTS:
            try:
                values[VARIANTS[key]] = parse_value(FIELDS[VARIANTS[key]], text)
            except InputError as error:
                problems.append(f"variant {part!r}: {error}")
        elif not equals and key in presets:
            for path, value in presets[key].items():
                set_field(config, path, value)
        else:
            valid = [f"{name}=" for name in VARIANTS] + list(presets)
            near = nearest(key, valid)
            problems.append(f"variant {part!r} is unknown: the nearest is {near!r}, all are {', '.join(valid)}")
    for path, value in values.items():
        set_field(config, path, value)
    if problems:
        raise ConfigError(problems, config)
    return config


def to_dict(config: Config | ConfigDict) -> dict[str, Any]:
    """Returns the config as nested dicts, a section each."""
    return from_flat(flatten(config)).to_dict()


def to_json(config: Config | ConfigDict) -> str:
    """Returns the config as indented JSON, the text of a workdir's config.json."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str) -> dict[str, Any]:
    """Reads the text of `to_json` back.

    Returns:
        {dotted path: value}, not checked; lists have become tuples, which JSON does not know. A field that the text
        lacks is newer than its run, which did what the field's default does.

    Raises:
        InputError: it is not a JSON object.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError("not a JSON object")
    leaves = flatten(ConfigDict(values, type_safe=False))
    read = {path: tuple(leaf) if isinstance(leaf, list) else leaf for path, leaf in leaves.items()}
    return {path: field.default for path, field in FIELDS.items()} | read


def diff_configs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists the fields that differ, with both values, but for those that a continued run may change.

    Paths are the same however they are written; what lies there is the matter of `experiment.inputs`.

    Args:
        before: {dotted path: value}, see `flatten`.
        now: the same of another config.

    Returns:
        Lines such as `config.data.shots: 2 before, 5 now`; empty when the run before may be continued.
    """
    lines = []
    for path in dict.fromkeys([*FIELDS, *now, *before]):
        field = FIELDS.get(path, _UNKNOWN)
        values = [side.get(path) for side in (before, now)]
        if field.is_path:
            values = [normalized(value) if isinstance(value, str) else value for value in values]
        if not field.may_change and values[0] != values[1]:
            texts = [repr(side[path]) if path in side else "absent" for side in (before, now)]
            lines.append(f"config.{path}: {texts[0]} before, {texts[1]} now")
    return lines
