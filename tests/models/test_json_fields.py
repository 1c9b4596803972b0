"""Every field of the JSON files of models: known, and refused by name where its value is not supported."""

import inspect
import json

import diffusers
import pytest
import transformers

from utilgen_jax.checkpoints.tokenizer import TOKENIZER_FIELDS
from utilgen_jax.diffusion.scheduler_fields import SCHEDULERS, class_settings
from utilgen_jax.diffusion.schedules import load_schedule
from utilgen_jax.errors import InputError
from utilgen_jax.models.autoencoder import AUTOENCODER_FIELDS, AutoencoderKL
from utilgen_jax.models.autoencoder_tiny import TINY_FIELDS, AutoencoderTiny
from utilgen_jax.models.clip_text import TEXT_FIELDS, CLIPTextModel
from utilgen_jax.models.clip_vision import (
    PREPROCESSOR_FIELDS,
    VISION_FIELDS,
    CLIPVisionModelWithProjection,
    read_preprocessor,
)
from utilgen_jax.models.json_fields import WITHOUT_EFFECT, read_fields
from utilgen_jax.models.unet import UNET_FIELDS, UNet2DConditionModel


def arguments(kind):
    """{name: default} of a class's constructor."""
    parameters = inspect.signature(kind.__init__).parameters
    return {name: one.default for name, one in parameters.items() if name not in ("self", "args", "kwargs")}


# What is read -> its table, the fields that the other library writes with their defaults, and our reader.
FILES = {
    "unet": (UNET_FIELDS, arguments(diffusers.UNet2DConditionModel), UNet2DConditionModel.from_config),
    "vae (TAESD)": (TINY_FIELDS, arguments(diffusers.AutoencoderTiny), AutoencoderTiny.from_config),
    "vae": (AUTOENCODER_FIELDS, arguments(diffusers.AutoencoderKL), AutoencoderKL.from_config),
    "text_encoder": (TEXT_FIELDS, transformers.CLIPTextConfig().to_dict(), CLIPTextModel.from_config),
    "image_encoder": (
        VISION_FIELDS,
        transformers.CLIPVisionConfig().to_dict(),
        CLIPVisionModelWithProjection.from_config,
    ),
    "feature_extractor": (
        PREPROCESSOR_FIELDS,
        json.loads(transformers.CLIPImageProcessor().to_json_string()),
        lambda config: read_preprocessor(config, 224),
    ),
}
FILES |= {
    name: (
        {field: its.kind for field, its in fields.items()},
        arguments(getattr(diffusers, name)) | ({"skip_prk_steps": True} if name == "PNDMScheduler" else {}),
        lambda config, name=name: class_settings(name, config),
    )
    for name, fields in SCHEDULERS.items()
}


@pytest.mark.parametrize("name", FILES)
def test_every_field_that_the_other_library_has_is_in_the_table_and_its_default_is_supported(name):
    table, defaults, read = FILES[name]
    assert set(defaults) <= set(table)
    read(defaults)


@pytest.mark.parametrize("name", FILES)
def test_a_number_cannot_be_null_zero_a_list_or_a_word(name):
    table, defaults, read = FILES[name]
    numbers = [field for field, kind in table.items() if kind.is_number]
    assert numbers or name == "feature_extractor"
    for field in numbers:
        for value in (None, 0, -1, [], [1, "a"], {}, "1", True, float("nan"), float("inf"), 0.5):
            if table[field].accepts(value):
                continue
            with pytest.raises(InputError, match=f"{field} = ") as refusal:
                read(defaults | {field: value})
            assert "is not supported; " in str(refusal.value)
    sizes = [field for field in numbers if not table[field].accepts(0)]
    assert len(sizes) >= len(numbers) / 2 or name == "text_encoder"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_field_has_the_other_librarys_default(name):
    table, defaults, read = FILES[name]
    if name in SCHEDULERS:
        ours, theirs = read({} if name != "PNDMScheduler" else {"skip_prk_steps": True}), defaults
    elif name == "feature_extractor":
        ours = dict(zip(("image_mean", "image_std"), map(list, read({})), strict=True))
        theirs = {field: defaults[field] for field in ours}
    else:
        module = read({})
        known = [field for field in defaults if hasattr(module, field) and table[field] is not WITHOUT_EFFECT]
        theirs = {field: defaults[field] for field in known}
        ours = {field: getattr(module, field) for field in theirs}
    assert ours == {field: tuple(value) if value == [] else value for field, value in theirs.items()}


def test_pndms_runge_kutta_steps_are_diffusers_default_and_refused():
    assert SCHEDULERS["PNDMScheduler"]["skip_prk_steps"].default is False
    with pytest.raises(InputError, match="PNDMScheduler: skip_prk_steps = False is not supported; True is"):
        class_settings("PNDMScheduler", {})


def test_files_of_older_versions_are_read():
    """As on the hub: transformers 4 wrote all fields of text generation, and plain numbers for sizes."""
    old = {
        "architectures": ["CLIPModel"],
        "torch_dtype": "float32",
        "top_k": 50,
        "max_length": 20,
        "id2label": {"0": ""},
    }
    read_fields("config.json", TEXT_FIELDS, old | {"pruned_heads": {}, "use_cache": True, "is_decoder": False})
    load_schedule({"_class_name": "PNDMScheduler", "predict_epsilon": True, "tensor_format": "pt"})
    feature_extractor = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3}
    assert read_preprocessor(feature_extractor, 224) == read_preprocessor({}, 224)


@pytest.mark.parametrize(
    "change",
    [
        {"do_normalize": False},
        {"resample": 2},
        {"rescale_factor": 1 / 127.5},
        {"size": {"shortest_edge": 256}},
        {"crop_size": 256},
        {"image_mean": [0.5]},
        {"image_processor_type": "ViTImageProcessor"},
    ],
)
def test_another_preprocessing_of_images_is_refused_by_name(change):
    with pytest.raises(InputError, match=f"preprocessor_config.json: {next(iter(change))} = "):
        read_preprocessor(change, 224)


def test_all_that_is_wrong_is_told_at_once_and_unknown_fields_may_be_off():
    read_fields("x.json", TOKENIZER_FIELDS, {"of_tomorrow": False, "other": None, "_private": 3})
    with pytest.raises(InputError) as refusal:
        read_fields("x.json", TOKENIZER_FIELDS, {"of_tomorrow": 1, "model_max_length": 0, "tokenizer_class": "T5"})
    lines = str(refusal.value).splitlines()
    assert [line.split(" = ")[0] for line in lines] == [
        "x.json: of_tomorrow",
        "x.json: model_max_length",
        "x.json: tokenizer_class",
    ]
