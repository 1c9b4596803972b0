"""What is wrong with a configuration: every problem at once, each named by its field, before a device is touched."""

import math
import string
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from utilgen_jax.config.schema import (
    FIELDS,
    Config,
    ConfigError,
    build_config,
    flatten,
    from_flat,
    unknown_field,
)
from utilgen_jax.data.words import word_problems
from utilgen_jax.errors import nearest
from utilgen_jax.fields import Field
from utilgen_jax.runtime.paths import expand, is_in_bucket, is_without_home

IN_BUCKETS = ("data.path", "generator.checkpoint")  # the fields that may name a place in a bucket


def checked(config: ConfigDict) -> Config:
    """Makes the typed `Config` of a valid ConfigDict: a list becomes a tuple, `~` of a path the home folder.

    Raises:
        ConfigError: lists every problem that `validate` finds.
    """
    problems = validate(config)
    if problems:
        raise ConfigError(problems)
    values = flatten(config)
    typed = {path: type(field.default)(values[path]) for path, field in FIELDS.items()}
    return build_config({path: expand(value) if FIELDS[path].is_path else value for path, value in typed.items()})


def with_fields(config: Config, fields: Mapping[str, Any]) -> Config:
    """Returns a copy of a config with some fields, by dotted path, changed; ConfigError if it is not valid."""
    return checked(from_flat(flatten(config) | dict(fields)))


def validate(config: ConfigDict) -> list[str]:
    """Lists all problems of a config; empty when it is good.

    Each field by itself comes first (unknown, missing, type, range, choices), then the rules whose fields are right.
    """
    values = flatten(config)
    problems = [unknown_field(path) for path in values if path not in FIELDS]
    bad = set()
    for path, field in FIELDS.items():
        problem = _field_problem(field, values[path]) if path in values else "missing: start from default_config()"
        if problem:
            bad.add(path)
            problems.append(f"config.{path}: {problem}")
    for paths, holds, message in RULES:
        if bad.isdisjoint(paths) and not holds(*(values[path] for path in paths)):
            problems.append(message)
    if "data.class_names" not in bad:
        problems += word_problems(values["data.class_names"])
    return problems


def _field_problem(field: Field, value: Any) -> str:
    """Says what is wrong with one value, or nothing."""
    kinds: dict[type, tuple[tuple[type, ...], str]] = {
        bool: ((bool,), "True or False"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "text"),
        tuple: ((tuple, list), "a tuple of texts"),
    }
    types, kind = kinds[type(field.default)]
    many = isinstance(field.default, tuple)
    # A bool is an int to Python, not to a person.
    right = isinstance(value, types) and isinstance(value, bool) == isinstance(field.default, bool)
    if not right or (many and not all(isinstance(entry, str) for entry in value)):
        return f"expected {kind}, got {value!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be finite, got {value}"
    for entry in value if many else (value,):
        if field.is_path and is_without_home(entry):
            return f"there is no such home folder, {entry!r}"
        if field.is_path and is_in_bucket(entry) and field.path not in IN_BUCKETS:
            return f"cannot be in a bucket, {entry!r}; give a path on this machine"
        if field.choices and entry not in field.choices:
            near = f"; the nearest is {nearest(entry, field.choices)!r}" if isinstance(entry, str) else ""
            return f"must be one of {', '.join(map(repr, field.choices))}, got {entry!r}{near}"
    if many and len(set(value)) < len(value):
        return f"names an entry twice: {value!r}"
    if field.minimum is not None and value < field.minimum:
        return f"must be at least {field.minimum}, got {value}"
    if field.maximum is not None and value > field.maximum:
        return f"must be at most {field.maximum}, got {value}"
    return ""


def _placeholders(template: str) -> list[str] | None:
    """Returns the names in a prompt template's braces, or None where the braces do not match."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        return None


# What `models.classifiers` and `models.vit` take; written out, because a config is checked before JAX is imported.
_SCALABLE = ("small_cnn", "mlp")

# Rules that are more than a range: (fields, what must hold of their values, what to say where it does not).
RULES: tuple[tuple[tuple[str, ...], Callable[..., bool], str], ...] = (
    (
        ("data.source", "data.path"),
        lambda source, path: source != "imagefolder" or bool(path),
        "config.data.path: name the folder that holds train/<class>/*.png or *.jpg: --config.data.path=FOLDER",
    ),
    (
        ("data.source", "data.path"),
        lambda source, path: source != "npz" or bool(path),
        "config.data.path: name the .npz file: --config.data.path=FILE",
    ),
    (("data.name",), bool, "config.data.name: must not be empty"),
    (
        ("per_image.inversion_steps", "generator.steps"),
        lambda there, steps: there <= steps,
        "config.per_image.inversion_steps: at most config.generator.steps, of which they are a part",
    ),
    (
        ("data.class_names",),
        lambda words: len(words) != 1,
        "config.data.class_names: give one word for every class, or none at all",
    ),
    (
        ("data.class_names", "data.classes_file"),
        lambda words, file: not (words and file),
        "config.data.classes_file: give words in the file or in config.data.class_names, not in both",
    ),
    (
        ("data.shots", "data.imbalance_factor"),
        lambda shots, factor: shots > 0 or factor == 1,
        "config.data.imbalance_factor: needs config.data.shots, the number of the first class's images",
    ),
    (("generator.checkpoint",), bool, "config.generator.checkpoint: give 'glyphs', a folder, or a hub id"),
    (
        ("prompts.template",),
        lambda prompt: _placeholders(prompt) == ["class"],
        "config.prompts.template: must hold {class} once and no other braces, such as 'a photo of a {class}'",
    ),
    (
        ("classifier.name", "data.image_size"),
        lambda name, size: name not in _SCALABLE or size % 8 == 0,
        "config.data.image_size: small_cnn and mlp take multiples of 8",
    ),
    (
        ("classifier.name", "data.image_size"),
        lambda name, size: name != "vit_s" or size % (16 if size >= 64 else 4) == 0,
        "config.data.image_size: vit_s takes multiples of 4, from 64 pixels on of 16",
    ),
    (
        ("classifier.name", "classifier.width"),
        lambda name, width: name not in _SCALABLE or width % 8 == 0,
        "config.classifier.width: of small_cnn and mlp must be a multiple of 8",
    ),
    (
        ("classifier.max_shift", "data.image_size"),
        lambda shift, size: shift < size,
        "config.classifier.max_shift: must be less than config.data.image_size",
    ),
    (
        ("classifier.trainable", "classifier.pretrained"),
        lambda trainable, pretrained: trainable != "head" or bool(pretrained),
        "config.classifier.trainable: 'head' needs config.classifier.pretrained: random features would stay random",
    ),
    (
        ("classifier.normalization", "data.channels"),
        lambda normalization, channels: normalization == "none" or channels == 3,
        "config.classifier.normalization: 'imagenet' is of 3 channels; set config.data.channels to 3",
    ),
    (
        ("pool.fill_to", "data.shots"),
        lambda goal, shots: goal == 0 or goal > shots,
        "config.pool.fill_to: must be more than config.data.shots, or no class gets synthetic images",
    ),
    (
        ("pool.fill_to", "pool.images_per_shot"),
        lambda goal, images: goal == 0 or images == 0,
        "config.pool.images_per_shot: the number of synthetic images is set by it or by config.pool.fill_to; "
        "set one of them to 0",
    ),
    (("parallel.data",), bool, "config.parallel.data: must be -1 or at least 1"),
    (("parallel.fsdp",), bool, "config.parallel.fsdp: must be -1 or at least 1"),
    (
        ("parallel.data", "parallel.fsdp"),
        lambda data, fsdp: (data, fsdp) != (-1, -1),
        "config.parallel: only one of data and fsdp may be -1",
    ),
)
