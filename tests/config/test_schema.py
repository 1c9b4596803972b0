"""The schema, variants, validation, and configs as JSON."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from configs import cifar
from utilgen_jax.classifier.model import NORMALIZATIONS
from utilgen_jax.config import protocols
from utilgen_jax.config import schema as config_lib
from utilgen_jax.config.protocols import PROTOCOLS
from utilgen_jax.config.schema import FIELDS, RENAMED, VARIANTS, Config, ConfigError, apply_variant, default_config
from utilgen_jax.config.validation import RULES, checked, validate
from utilgen_jax.errors import InputError
from utilgen_jax.fields import Field, section_fields, setting
from utilgen_jax.generator.finetune.config import DpoConfig
from utilgen_jax.generator.image_conditioning import MIX_STRATEGIES
from utilgen_jax.models.classifiers import CLASSIFIERS
from utilgen_jax.models.gradient_checkpointing import GRADIENT_CHECKPOINTING


def problems_with(**fields: object) -> list[str]:
    """The problems of the default config with `section__name=value` changed."""
    config = default_config()
    for name, value in fields.items():
        config_lib.set_field(config, name.replace("__", "."), value)
    return validate(config)


def test_default_is_valid_and_every_field_is_documented():
    assert validate(default_config()) == []
    for path, field in FIELDS.items():
        assert field.path == path
        assert field.help
        assert field.path.count(".") <= 1
        assert type(field.default) in (bool, int, float, str, tuple)


def test_tables_name_only_fields_that_exist():
    named = [*VARIANTS.values(), *(path for paths, _, _ in RULES for path in paths)]
    assert set(named) <= set(FIELDS)


@pytest.mark.parametrize(
    "field", [field for field in FIELDS.values() if field.minimum is not None], ids=lambda field: field.path
)
def test_every_minimum_is_enforced(field: Field):
    below = field.minimum - 1
    message = f"config.{field.path}: must be at least {field.minimum}, got {below}"
    assert message in problems_with(**{field.path.replace(".", "__"): below})


@pytest.mark.parametrize(
    "field", [field for field in FIELDS.values() if field.maximum is not None], ids=lambda field: field.path
)
def test_every_maximum_is_enforced(field: Field):
    above = field.maximum + 1
    message = f"config.{field.path}: must be at most {field.maximum}, got {above}"
    assert message in problems_with(**{field.path.replace(".", "__"): above})


@pytest.mark.parametrize("field", [field for field in FIELDS.values() if field.choices], ids=lambda field: field.path)
def test_every_choice_is_enforced(field: Field):
    wrong = ("nonesuch",) if isinstance(field.default, tuple) else 2 if field.path == "data.channels" else "nonesuch"
    problems = problems_with(**{field.path.replace(".", "__"): wrong})
    assert len(problems) == 1
    assert problems[0].startswith(f"config.{field.path}: must be one of {field.choices[0]!r}, ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__shots": "2"}, "config.data.shots: expected a whole number, got '2'"),
        ({"data__shots": 2.5}, "config.data.shots: expected a whole number, got 2.5"),
        ({"data__shots": True}, "config.data.shots: expected a whole number, got True"),
        ({"generator__guidance_scale": None}, "config.generator.guidance_scale: expected a number, got None"),
        ({"generator__guidance_scale": float("nan")}, "config.generator.guidance_scale: must be finite, got nan"),
        ({"data__name": 3}, "config.data.name: expected text, got 3"),
        ({"data__class_names": (1, 2)}, "config.data.class_names: expected a tuple of texts, got (1, 2)"),
        ({"data__class_names": ("a", "a")}, "config.data.class_names: names an entry twice: ('a', 'a')"),
        ({"data__class_names": ("a",)}, "config.data.class_names: give one word for every class, or none at all"),
        (
            {"data__class_names": ("a|b", "c||d")},
            "config.data.class_names: entry 2 of 2, 'c||d': an empty word; write words with | between them, such as "
            "'crane bird|crane'",
        ),
        (
            {"data__class_names": ("a", "")},
            "config.data.class_names: entry 2 of 2, '': an empty word; write words with "
            "| between them, such as 'crane bird|crane'",
        ),
        (
            {"data__class_names": ("a", "b|c|b", "c")},
            "config.data.class_names: entry 2 of 3, 'b|c|b': 'b' stands there twice",
        ),
        ({"prompts__choose_words": 1}, "config.prompts.choose_words: expected True or False, got 1"),
        (
            {"per_image__inversion_steps": 31},
            "config.per_image.inversion_steps: at most config.generator.steps, of which they are a part",
        ),
        ({"baselines": "vanilla"}, "config.baselines: expected a tuple of texts, got 'vanilla'"),
        ({"data__shotz": 3}, "config.data.shotz: there is no such field; the nearest valid name is config.data.shots"),
        ({"shots": 3}, "config.shots: there is no such field; the nearest valid name is config.data.shots"),
        ({"dta__seed": 3}, "config.dta.seed: there is no such field; the nearest valid name is config.seed"),
        (
            {"data__classes_file": "x", "data__class_names": ("a", "b")},
            "config.data.classes_file: give words in the file or in config.data.class_names, not in both",
        ),
        (
            {"data__shots": 0, "data__imbalance_factor": 2.0},
            "config.data.imbalance_factor: needs config.data.shots, the number of the first class's images",
        ),
        ({"data__source": "npz"}, "config.data.path: name the .npz file: --config.data.path=FILE"),
        ({"data__name": ""}, "config.data.name: must not be empty"),
        ({"generator__checkpoint": ""}, "config.generator.checkpoint: give 'glyphs', a folder, or a hub id"),
        ({"classifier__max_shift": 8}, "config.classifier.max_shift: must be less than config.data.image_size"),
        ({"data__image_size": 28}, "config.data.image_size: small_cnn and mlp take multiples of 8"),
        (
            {"classifier__name": "vit_s", "data__image_size": 72},
            "config.data.image_size: vit_s takes multiples of 4, from 64 pixels on of 16",
        ),
        ({"classifier__width": 12}, "config.classifier.width: of small_cnn and mlp must be a multiple of 8"),
        (
            {"classifier__trainable": "head"},
            "config.classifier.trainable: 'head' needs config.classifier.pretrained: random features would stay random",
        ),
        (
            {"classifier__normalization": "imagenet"},
            "config.classifier.normalization: 'imagenet' is of 3 channels; set config.data.channels to 3",
        ),
        (
            {"pool__fill_to": 9, "pool__images_per_shot": 5},
            "config.pool.images_per_shot: the number of synthetic images is set by it or by config.pool.fill_to; "
            "set one of them to 0",
        ),
        ({"parallel__data": 0}, "config.parallel.data: must be -1 or at least 1"),
        ({"parallel__fsdp": 0}, "config.parallel.fsdp: must be -1 or at least 1"),
        ({"parallel__fsdp": -1}, "config.parallel: only one of data and fsdp may be -1"),
    ],
)
def test_each_mistake_has_its_message(fields: dict[str, object], message: str):
    assert problems_with(**fields) == [message]


def test_a_wrong_word_gets_the_nearest_choice():
    (problem,) = problems_with(method="vanila")
    assert problem.endswith("got 'vanila'; the nearest is 'vanilla'")


@pytest.mark.parametrize("prompt", ["a digit", "{class} or {class}", "{kind}", "{class} {", "{}"])
def test_prompt_must_hold_the_class_once(prompt: str):
    (problem,) = problems_with(prompts__template=prompt)
    assert problem.startswith("config.prompts.template: must hold {class} once")


def test_missing_fields_are_named():
    config = default_config()
    del config.data.shots
    assert validate(config) == ["config.data.shots: missing: start from default_config()"]


def test_all_problems_are_told_at_once():
    problems = problems_with(data__shots=-1, seed="x", nonesuch=1, data__source="imagefolder", prompts__template="")
    assert [problem.partition(":")[0] for problem in problems] == [
        "config.nonesuch",
        "config.seed",
        "config.data.shots",
        "config.data.path",
        "config.prompts.template",
    ]
    config = default_config()
    config.update(seed=-1, method="x")
    with pytest.raises(ConfigError) as caught:
        checked(config)
    assert len(caught.value.problems) == 2
    assert str(caught.value).splitlines() == caught.value.problems


def test_checked_makes_a_typed_config_that_cannot_be_changed():
    config = default_config()
    config.baselines = ["vanilla"]
    config.generator.guidance_scale = 3
    good = checked(config)
    assert good.baselines == ("vanilla",)
    assert type(good.generator.guidance_scale) is float
    assert good.section(DpoConfig) == DpoConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.data.shots = 3  # type: ignore[misc]
    assert config_lib.flatten(good) == config_lib.flatten(config) | {"baselines": ("vanilla",)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("utility.steps", "valuation.steps"),
        ("preference.lora_rank", "dpo.rank"),
        ("adaptation.lora_rank", "lora.rank"),
        ("inversion.batch_size", "textual_inversion.batch_size"),
        ("generator.phrases", "prompts.attributes"),
        ("difficulty.deviation", "difficulty.std"),
        ("consensus.members", "ensemble.members"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(old: str, new: str):
    assert problems_with(**{old.replace(".", "__"): 1}) == [f"config.{old}: is now called config.{new}"]


def test_every_new_name_exists():
    sections = {path.partition(".")[0] for path in FIELDS}
    assert all(new in FIELDS or new in sections for new in RENAMED.values())
    assert not set(RENAMED) & (sections | set(FIELDS))


def test_a_section_is_declared_by_its_dataclass():
    @dataclasses.dataclass(frozen=True)
    class Section:
        size: int = setting(3, "how many", minimum=1, maximum=9)
        derived: int = 0  # no setting: no field of the config

    assert list(section_fields(Section, "my.")) == [Field("my.size", 3, "how many", minimum=1, maximum=9)]


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("data.shots", "5", 5),
        ("parallel.data", "-1", -1),
        ("generator.guidance_scale", "3", 3.0),
        ("valuation.learning_rate", "1e-2", 0.01),
        ("data.path", "a=b,c", "a=b,c"),
        ("baselines", "vanilla", ("vanilla",)),
        ("baselines", "", ()),
        ("data.class_names", "('a, b', \"c\")", ("a, b", "c")),
        ("data.class_names", "crane bird|crane,cat", ("crane bird|crane", "cat")),
        ("prompts.choose_words", "True", True),
        ("prompts.choose_words", "false", False),
    ],
)
def test_values_are_read_by_the_fields_type(path: str, text: str, value: object):
    read = config_lib.parse_value(FIELDS[path], text)
    assert read == value
    assert type(read) is type(FIELDS[path].default)


@pytest.mark.parametrize(
    ("path", "text"),
    [("data.shots", "2.5"), ("data.shots", ""), ("seed", "one"), ("baselines", "(a"), ("baselines", "(a, b)")],
)
def test_unreadable_values_are_refused_by_name(path: str, text: str):
    with pytest.raises(InputError, match=f"^config.{path}: "):
        config_lib.parse_value(FIELDS[path], text)


def test_variants_are_typed_and_presets_come_first():
    presets = {"runlocal": {"data.shots": 4, "classifier.steps": 40}}
    config = apply_variant(default_config(), "shots=5, runlocal,method=vanilla", presets)
    assert (config.data.shots, config.classifier.steps, config.method) == (5, 40, "vanilla")
    assert apply_variant(default_config(), "") == default_config()


def test_protocols_are_variants_of_every_config_and_follow_its_presets():
    presets = {"small": {"pool.images_per_shot": 1, "classifier.synthetic_fraction": 0.5}}
    config = apply_variant(default_config(), "synthetic_only,5x,small,shots=3", presets)
    assert (config.pool.images_per_shot, config.classifier.synthetic_fraction, config.data.shots) == (5, 1.0, 3)
    config = apply_variant(default_config(), "50x,real+synthetic,small", presets)
    assert (config.pool.images_per_shot, config.classifier.synthetic_fraction) == (50, 0.5)
    assert set(protocols.HELP) == set(PROTOCOLS) and len(PROTOCOLS) == 4
    assert {path for fields in PROTOCOLS.values() for path in fields} <= set(FIELDS)
    for name in PROTOCOLS:
        assert validate(apply_variant(default_config(), name)) == []


def test_protocols_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError) as caught:
        apply_variant(default_config(), "5x,50x,real+synthetic,5y")
    first, second = caught.value.problems
    assert first == "variant 5x and 50x: these protocols exclude each other; name one"
    assert second.startswith("variant '5y' is unknown: the nearest is '5x'")
    assert protocols.conflicts(["synthetic_only", "5x", "real+synthetic"]) == [
        "synthetic_only and real+synthetic: these protocols exclude each other; name one"
    ]
    assert protocols.conflicts(["5x", "synthetic_only", "5x"]) == []
    assert protocols.conflicts(["images=10", "50x", "shots=5"]) == [
        "images=10 and 50x: both set the number of synthetic images; name one"
    ]
    assert protocols.conflicts(["images=10", "synthetic_only"]) == []


def test_all_bad_variants_are_told_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        apply_variant(default_config(), "shot=5,runlokal,seed=x,method", {"runlocal": {}})
    first, second, third, fourth = caught.value.problems
    assert first.startswith("variant 'shot=5' is unknown: the nearest is 'shots='")
    assert second.startswith("variant 'runlokal' is unknown: the nearest is 'runlocal'")
    assert third == "variant 'seed=x': config.seed: expected a whole number, got 'x'"
    assert fourth.startswith("variant 'method' is unknown: the nearest is 'method='")


def test_json_and_back():
    config = checked(cifar.get_config("runlocal"))
    assert isinstance(config, Config)
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.build_config(again) == config
    assert config_lib.diff_configs(again, config_lib.flatten(config)) == []


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_what_is_no_config_json_is_refused(text: str):
    with pytest.raises(InputError, match="not .*JSON"):
        config_lib.from_json(text)


def test_diff_names_fields_with_both_values_and_leaves_out_what_may_change():
    old, new = default_config(), default_config()
    new.data.shots = 5
    new.log_every_steps = 7
    new.parallel.fsdp = 2
    del old["method"], old.classifier["mixing"]
    new.method = "vanilla"
    old.pool.colour = "red"
    old = config_lib.from_json(config_lib.to_json(old))  # of before these two fields
    assert config_lib.diff_configs(old, config_lib.flatten(new)) == [
        "config.method: 'joint' before, 'vanilla' now",
        "config.data.shots: 2 before, 5 now",
        "config.pool.colour: 'red' before, absent now",
    ]


def test_flatten_and_from_flat_are_inverse():
    flat = {path: field.default for path, field in FIELDS.items()}
    assert config_lib.flatten(config_lib.from_flat(flat)) == flat
    assert isinstance(default_config().data, ConfigDict)


def test_fields_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FIELDS["seed"].default = 1  # type: ignore[misc]


def test_the_classifiers_of_the_config_are_those_that_there_are():
    assert set(FIELDS["classifier.name"].choices) == set(CLASSIFIERS)
    assert set(FIELDS["classifier.normalization"].choices) == set(NORMALIZATIONS)


def test_the_mix_strategies_of_the_config_are_those_that_there_are():
    assert FIELDS["augcond.mix_strategy"].choices == tuple(MIX_STRATEGIES)
    assert FIELDS["generator.gradient_checkpointing"].choices == tuple(GRADIENT_CHECKPOINTING)
