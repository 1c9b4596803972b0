"""The configuration: one table of fields, from which the defaults, the checks, the parsing and `--help` are made.

A config file starts from `default_config()`, sets fields, and ends with `apply_variant(config, arg)`; `config_check.py`
says what is wrong with the result. Nothing here touches a device, so mistakes are told before JAX is even imported.
"""

import ast
import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from utilgen_jax.errors import InputError
from utilgen_jax.methods import METHODS


@dataclasses.dataclass(frozen=True)
class Field:
    """One row of the schema.

    Attributes:
        path: Dotted name, at most one dot.
        default: Value in `default_config()`; its type is the field's type (int, float, str, or a tuple of str).
        help: What it means, for a person; shown by `--help`.
        minimum: Smallest value allowed (numbers) or None.
        maximum: Largest value allowed (numbers) or None.
        choices: All values allowed (of a tuple: of each entry); empty means any.
        may_change: A run may be continued with another value: it does not alter what is computed.
    """

    path: str
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    may_change: bool = False


BASELINES = ("vanilla",)
SCHEDULERS = ("ddim", "ddpm", "pndm", "dpmsolver++", "euler", "lcm", "checkpoint")
# Those of `models.classifiers`, written out: a config is checked before JAX is imported.
CLASSIFIERS = ("small_cnn", "mlp") + tuple(f"resnet{depth}" for depth in (20, 32, 56, 18, 34, 50, 101))
CLASSIFIERS += ("resnext50", "wide_resnet50", "mobilenet_v2", "vit_s")
NORMALIZATIONS = ("none", "imagenet")

# Those of `generator.augmented_conditions`.
_PLAIN_WAYS = ("image", "cutmix", "mixup", "embed_cutmix", "embed_mixup")
WAYS = _PLAIN_WAYS + tuple(f"{name}_dropout" for name in _PLAIN_WAYS)

# The words in which the glyph domain was trained, those of `foundation.vocabulary`; likewise.
GLYPH_PHRASES = (
    "thin|regular weight|bold",
    "leaning left|upright|leaning right",
    "narrow|normal width|wide",
    "small|medium size|large",
    "centred|to the left|to the right|to the top|to the bottom",
    "clean|grainy|blurred",
    "sans|serif|typewriter|italic",
)

SCHEMA: tuple[Field, ...] = (
    Field("method", "joint", "what is added to the real images", choices=tuple(METHODS)),
    Field("baselines", ("vanilla",), "rows trained beside the method's and real only", choices=BASELINES),
    Field("seed", 0, "the one random seed: split, pool, classifiers", minimum=0, maximum=2**31 - 1),
    Field("log_every_steps", 50, "training steps a line of metrics.jsonl, their mean", minimum=1, may_change=True),
    #
    Field("data.source", "digits", "where images come from", choices=("digits", "tfds", "imagefolder", "npz")),
    Field("data.name", "digits", "tfds: the data set's name; otherwise the name shown in tables"),
    Field("data.path", "", "tfds: data_dir; imagefolder: folder with train/<class>/; npz: the file"),
    Field("data.shots", 2, "labelled real images a class, others are test or unused; 0: all of train", minimum=0),
    Field("data.imbalance_factor", 1.0, "long tail: the first class has so many times the last's shots", minimum=1.0),
    Field("data.image_size", 8, "height and width the classifier sees, in pixels", minimum=4, maximum=1024),
    Field("data.channels", 1, "1: grey, 3: RGB", choices=(1, 3)),
    Field("data.class_names", (), "words for the prompts, in the order of the labels; empty: the data set's own"),
    Field("data.classes_file", "", "text file of the classes to use, a line each: the data set's name for it, words"),
    Field("data.max_classes", 0, "classes used at most, the first ones; 0: all", minimum=0),
    Field("data.exclude", "", "text file of the ids of train images that are left out, such as the generator's own"),
    Field("data.label_noise", 0.0, "part of the shots' labels that is drawn anew", minimum=0.0, maximum=1.0),
    Field("data.max_test", 0, "test images used at most; 0: all", minimum=0),
    #
    Field("generator.checkpoint", "glyphs", "'glyphs' (embedded), a diffusers folder, or a hub id"),
    Field("generator.revision", "", "branch, tag or commit of a hub id; empty: its main branch"),
    Field("generator.dtype", "float32", "type of the generator's activations", choices=("float32", "bfloat16")),
    Field("generator.scheduler", "ddim", "sampler of the steps; 'checkpoint': its own", choices=SCHEDULERS),
    Field("generator.steps", 12, "denoising steps an image", minimum=1, maximum=1000),
    Field("generator.guidance_scale", 2.0, "classifier-free guidance; 1 or less: none", minimum=0.0, maximum=100.0),
    Field("generator.prompt", "a photo of the digit {class}", "template; {class} becomes the class name"),
    Field("generator.phrases", GLYPH_PHRASES, "'phrases' behind the prompt: a group each, 'thin|bold', for `joint`"),
    Field("generator.phrase_probability", 0.15, "that one of a group is said at first", minimum=0.0, maximum=1.0),
    Field("generator.negative_prompt", "", "prompt that guidance leads away from"),
    Field("generator.image_size", 32, "height and width of generated images, in pixels", minimum=8, maximum=2048),
    Field("generator.batch_size", 100, "images generated at once", minimum=1),
    #
    Field("pool.images_per_class", 100, "synthetic images a class", minimum=1),
    Field("pool.fill_to", 0, "instead, so many that a class has this number with its shots; 0: not so", minimum=0),
    #
    Field("captions.source", "glyphs", "'glyphs', 'blip2', a captioner's hub id or folder, or a file *.jsonl"),
    Field("conditioning.way", "cutmix", "how two shots are mixed to start from", choices=WAYS),
    Field("conditioning.strength", 0.7, "without an image encoder: part of the way walked", minimum=0.01, maximum=1.0),
    Field("adaptation.steps", 300, "fitting the generator to the shots: optimiser steps", minimum=1),
    Field("adaptation.batch_size", 16, "images a step", minimum=2),
    Field("adaptation.prior_fraction", 0.5, "part of a batch that is the generator's own", minimum=0.0, maximum=0.95),
    Field("adaptation.learning_rate", 1e-3, "AdamW: peak, then cosine decay", minimum=1e-8, maximum=1.0),
    Field("adaptation.lora_rank", 4, "of the factors on the UNet's attention", minimum=1, maximum=1024),
    Field("adaptation.snr_gamma", 5.0, "min-SNR weighting of the loss; 0: none", minimum=0.0),
    Field("inversion.steps", 200, "learning a word for each class: as the fields of adaptation", minimum=1),
    Field("inversion.batch_size", 16, "likewise", minimum=2),
    Field("inversion.prior_fraction", 0.5, "likewise", minimum=0.0, maximum=0.95),
    Field("inversion.learning_rate", 5e-3, "likewise", minimum=1e-8, maximum=1.0),
    Field("inversion.snr_gamma", 5.0, "likewise", minimum=0.0),
    Field("preference.rounds", 2, "of Diffusion-DPO, each with a pool of its own", minimum=1),
    Field("preference.steps", 60, "optimiser steps a round", minimum=1),
    Field("preference.batch_size", 32, "pairs a step", minimum=1),
    Field("preference.learning_rate", 1e-3, "Adam", minimum=1e-8, maximum=1.0),
    Field("preference.lora_rank", 8, "of the factors on the UNet's attention", minimum=1, maximum=1024),
    Field("preference.beta", 2000.0, "how near to where the round began; larger is nearer", minimum=0.0),
    Field("preference.fraction", 0.25, "part of a class that wins, and that loses", minimum=0.01, maximum=0.5),
    Field("instance.steps", 5, "a prompt for each image: steps of Adam", minimum=1),
    Field("instance.learning_rate", 0.02, "likewise", minimum=1e-8, maximum=10.0),
    Field("instance.sampler_steps", 4, "denoising steps to the image that is looked at", minimum=1, maximum=1000),
    Field("instance.differentiable_steps", 1, "the last of them, through which gradients flow", minimum=1),
    Field("instance.clip_weight", 0.5, "of nearness to the class's words in CLIP's space", minimum=0.0),
    Field(
        "instance.inversion_steps",
        1,
        "a noise for each image: of generator.steps, how many there and back",
        minimum=1,
    ),
    Field("instance.denoising_guidance", 0.0, "guidance of the way there; 0: generator.guidance_scale", minimum=0.0),
    Field("instance.inversion_guidance", 1.0, "and of the way back", minimum=0.0),
    Field("joint.oversampling", 2, "images made for each one that is kept, by a choice among them", minimum=1),
    Field("joint.steps", 400, "of the bilevel update that trains both adapters, the folds in turn", minimum=1),
    Field("joint.learning_rate", 0.02, "Adam, adapter over phrases", minimum=1e-8, maximum=10.0),
    Field("joint.weight_decay", 0.01, "of it; larger is nearer to even probabilities", minimum=0.0),
    Field("joint.generated", 10, "images that the generator makes in a step", minimum=1),
    Field("joint.lora_rank", 4, "adapter over the UNet: of the factors on its attention", minimum=1, maximum=1024),
    Field("joint.lora_learning_rate", 5e-4, "Adam, likewise", minimum=1e-8, maximum=1.0),
    Field("joint.sampler_steps", 4, "denoising steps to a generated image", minimum=1, maximum=1000),
    Field("joint.differentiable_steps", 1, "the last of them, through which gradients flow", minimum=1),
    Field("ensemble.members", 3, "soft labels: classifiers that are asked", minimum=1),
    Field("ensemble.mixing", "mixup", "of the images that they learn from", choices=("none", "mixup", "cutmix")),
    Field("ensemble.share", 1.0, "of what they say in a soft label; the rest is the label", minimum=0.0, maximum=1.0),
    Field("difficulty.steps", 1000, "fitting generator and encoder to it: as the fields of adaptation", minimum=1),
    Field("difficulty.batch_size", 32, "likewise", minimum=2),
    Field("difficulty.prior_fraction", 0.9, "likewise", minimum=0.0, maximum=0.95),
    Field("difficulty.learning_rate", 2e-3, "likewise", minimum=1e-8, maximum=1.0),
    Field("difficulty.lora_rank", 4, "likewise", minimum=1, maximum=1024),
    Field("difficulty.snr_gamma", 5.0, "likewise", minimum=0.0),
    Field("difficulty.mean", 0.5, "asked of the images: a normal distribution's mean", minimum=0.0, maximum=1.0),
    Field("difficulty.by_class", (), "classes of another mean, 'three=0.7,eight=0.3'"),
    Field("difficulty.deviation", 0.1, "its standard deviation; clipped to [0, 1]", minimum=0.0, maximum=1.0),
    #
    Field("classifier.name", "small_cnn", "the network", choices=CLASSIFIERS),
    Field("classifier.width", 32, "channels of small_cnn's first layer, units of mlp's hidden ones", minimum=1),
    Field("classifier.pretrained", "", "torch weights to start from, .safetensors or .npz; empty: random weights"),
    Field("classifier.trainable", "all", "'head': only the last layer, on frozen features", choices=("all", "head")),
    Field("classifier.normalization", "none", "of channels; 'imagenet': as torchvision", choices=NORMALIZATIONS),
    Field("classifier.dtype", "float32", "type of the classifier's activations", choices=("float32", "bfloat16")),
    Field("classifier.steps", 400, "optimiser steps, the same for every row of the table", minimum=1),
    Field("classifier.batch_size", 64, "images a step", minimum=2),
    Field(
        "classifier.synthetic_fraction", 0.0, "synthetic part of a batch; 0: 3 / (3 + shots)", minimum=0.0, maximum=1.0
    ),
    Field("classifier.learning_rate", 3e-3, "AdamW: peak, then cosine decay", minimum=1e-8, maximum=10.0),
    Field("classifier.weight_decay", 1e-4, "decoupled weight decay", minimum=0.0, maximum=1.0),
    Field("classifier.label_smoothing", 0.2, "share of the target spread over all classes", minimum=0.0, maximum=0.9),
    Field("classifier.max_shift", 1, "augmentation: random shift, pixels each way", minimum=0),
    Field("classifier.augmentation", "none", "of training images, in every row", choices=("none", "randaugment")),
    Field("classifier.mixing", "mixup", "of a batch's images, in every row", choices=("none", "mixup", "cutmix")),
    Field("classifier.mixing_alpha", 1.0, "of its Beta distribution", minimum=1e-3),
    Field("classifier.loss", "softmax", "'balanced_softmax' for rare classes", choices=("softmax", "balanced_softmax")),
    Field("classifier.eval_batch_size", 500, "test images at once", minimum=1, may_change=True),
    #
    Field("utility.folds", 2, "cross-fit: each part of the shots is validation once", minimum=2),
    Field("utility.steps", 300, "bilevel steps a fold", minimum=1),
    Field("utility.hidden", 100, "hidden units of the weight network", minimum=1),
    Field("utility.learning_rate", 1e-3, "Adam, weight network", minimum=1e-8, maximum=10.0),
    Field("utility.weight_decay", 1e-4, "weight network", minimum=0.0, maximum=1.0),
    Field("utility.label_strength", 4.0, "SAFLEX: how much the label counts in the soft one", minimum=0.0),
    Field("utility.temperature", 1.0, "SAFLEX: of the soft label; smaller is harder", minimum=1e-3),
    Field("utility.validation_batch_size", 0, "validation images a step; 0: the whole part", minimum=0),
    #
    Field("parallel.data", -1, "devices that share a batch; -1: all that are left", minimum=-1, may_change=True),
    Field("parallel.fsdp", 1, "devices that share the parameters; -1: all left", minimum=-1, may_change=True),
)
FIELDS: Mapping[str, Field] = {field.path: field for field in SCHEMA}

# What may stand in a variant string, `--config=configs/digits.py:method=vanilla,shots=5`, and the field it sets.
VARIANTS: Mapping[str, str] = {
    "method": "method",
    "seed": "seed",
    "shots": "data.shots",
    "path": "data.path",
    "checkpoint": "generator.checkpoint",
    "images": "pool.images_per_class",
    "steps": "classifier.steps",
    "folds": "utility.folds",
}


class ConfigError(InputError):
    """Every problem of a configuration at once.

    Attributes:
        problems: One message each; the exception's text is all of them, a line each.
        config: The config as far as it could be made, so that what else is wrong with it can be told too; or None.
    """

    def __init__(self, problems: Iterable[str], config: ConfigDict | None = None):
        """Keeps the messages and joins them."""
        self.problems = list(problems)
        self.config = config
        super().__init__("\n".join(self.problems))


def default_config() -> ConfigDict:
    """Returns the schema's defaults.

    Not type-safe and not locked: a config file's mistakes are then found by `config_check.validate`, all at once.
    """
    return from_flat({field.path: field.default for field in SCHEMA})


def from_flat(values: Mapping[str, Any]) -> ConfigDict:
    """Builds a config from {dotted path: value}; the inverse of `flatten`."""
    config = ConfigDict(type_safe=False)
    for path, value in values.items():
        set_field(config, path, value)
    return config


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns {dotted path: value} of every leaf, known or not."""

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


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the valid name most like this one; the part after the dot counts too (`step`, `utility.steps`)."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        name_end, end = name.rpartition(".")[2], candidate.rpartition(".")[2]
        last = difflib.SequenceMatcher(None, name_end, end).ratio()
        begun = 0.9 if end.startswith(name_end) else 0.0
        return max(whole, 0.95 * last, begun)

    return max(names, key=likeness)


def choice_problems(flag: str, given: str | Iterable[str] | None, valid: Iterable[str]) -> list[str]:
    """Lists, for each word of a flag's value that is not a valid one, what is wrong, with the nearest that is."""
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
        InputError: The text is not of the field's type.
    """
    if isinstance(field.default, str):
        return text
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
        config: Changed in place.
        arg: Comma-separated `key=value` pairs (keys of `VARIANTS`) and names of presets; may be empty.
        presets: {name: {dotted path: value}} that this config file offers; they are applied before the pairs.

    Raises:
        ConfigError: Lists every unknown key or preset, with the nearest valid name, and every unreadable value.
    """
    presets = presets or {}
    problems: list[str] = []
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in arg.split(","))):
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


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON, the text of a workdir's config.json."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads `to_json`'s text back.

    Returns:
        A config that is not checked; lists have become tuples, which JSON does not know. A field that the text lacks is
        newer than its run, which did what the field's default does.

    Raises:
        InputError: It is not a JSON object.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError("not a JSON object")
    leaves = flatten(ConfigDict(values, type_safe=False))
    read = {path: tuple(leaf) if isinstance(leaf, list) else leaf for path, leaf in leaves.items()}
    return from_flat(flatten(default_config()) | read)


def diff_configs(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lists the fields that differ, with both values, but for those that a continued run may change.

    Returns:
        Lines such as `config.data.shots: 2 before, 5 now`; empty when a run of `old` may be continued as `new`.
    """
    before, now = flatten(old), flatten(new)
    lines = []
    for path in dict.fromkeys([*FIELDS, *now, *before]):
        free = path in FIELDS and FIELDS[path].may_change
        if not free and before.get(path) != now.get(path):
            texts = [repr(values[path]) if path in values else "absent" for values in (before, now)]
            lines.append(f"config.{path}: {texts[0]} before, {texts[1]} now")
    return lines
