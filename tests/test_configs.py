"""Every file of configs/: it loads, is valid, has a small version, and names its data set's classes in words."""

import importlib
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenette import imagenette_dataset_builder

from configs import imagefolder, imagenette
from utilgen_jax.checkpoints.published import PUBLISHED
from utilgen_jax.config.presets import RUNLOCAL
from utilgen_jax.config.schema import FIELDS
from utilgen_jax.config.validation import validate
from utilgen_jax.errors import InputError
from utilgen_jax.pretraining.layout import TRAINING_IMAGES
from utilgen_jax.pretraining.sizes import IMAGE_SIZE
from utilgen_jax.prompts.templates import class_prompts

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py"))
# The other data sets that a file has, as variants.
PRESETS = {"cifar": ("cifar100",), "imagenet": ("imagenet100", "imagenet_lt")}
CASES = [(name, preset) for name in NAMES for preset in ("", *PRESETS.get(name, ()))]


def load(name: str, *variants: str):
    return importlib.import_module(f"configs.{name}").get_config(",".join(filter(None, variants)))


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_each_is_valid_whole_and_small(name, preset):
    large, small = load(name, preset, "path=somewhere"), load(name, preset, "runlocal,path=somewhere")
    for config in (large, small):
        assert validate(config) == []
        assert config.data.path == "somewhere"
    for section, field in (("generator", "steps"), ("pool", "images_per_class"), ("classifier", "steps")):
        assert small[section][field] < large[section][field]
    changed = load(name, preset, "path=somewhere,method=vanilla,shots=5,seed=3")
    assert (changed.method, changed.data.shots, changed.seed) == ("vanilla", 5, 3)
    assert validate(changed) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_generators_sizes_are_known_without_the_hub(name):
    # `plan` must find them without reading anything.
    checkpoint = load(name, "path=somewhere").generator.checkpoint
    assert checkpoint == "glyphs" or checkpoint in PUBLISHED


@pytest.mark.parametrize("name", ["cifar", "imagefolder", "pneumoniamnist"])
def test_a_pretrained_generator_of_ones_own_images_leaves_out_what_it_was_taught(name):
    config = load(name, "pretrained,path=somewhere")
    assert validate(config) == []
    assert Path(config.data.exclude).parent == Path(config.generator.checkpoint)
    assert Path(config.data.exclude).name == TRAINING_IMAGES
    assert config.generator.image_size == IMAGE_SIZE and config.generator.steps == FIELDS["generator.steps"].default


@pytest.mark.parametrize("name", NAMES)
def test_each_says_how_to_run_it(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert text.count(f"--config=configs/{name}.py") >= 2 and f"--config=configs/{name}.py:runlocal" in text
    assert "Real images: " in text


@pytest.mark.parametrize(("name", "preset"), [case for case in CASES if load(*case).data.source == "tfds"])
def test_tensorflow_datasets_knows_the_set_and_its_classes_have_words(name, preset, tmp_path):
    config = load(name, preset)
    features = tfds.builder(config.data.name, data_dir=tmp_path).info.features
    assert isinstance(features["image"], tfds.features.Image)
    label = features["label"]
    assert isinstance(label, tfds.features.ClassLabel)
    if config.data.class_names:
        assert len(config.data.class_names) == label.num_classes
    words = config.data.class_names or label.names
    if name == "imagenet":
        with pytest.raises(InputError, match="config.data.classes_file"):
            class_prompts(config.prompts.template, words)
    elif name != "cifar":  # Whose names tfds learns in preparing it.
        assert len(set(class_prompts(config.prompts.template, words))) == label.num_classes


def test_imagenettes_words_are_in_the_order_of_its_labels():
    # tfds lists the words beside the labels, in its own documentation.
    text = " ".join(imagenette_dataset_builder.__doc__.split())
    assert f"({', '.join(imagenette.WORDS)})" in text


def test_what_runlocal_sets_are_fields():
    assert set(RUNLOCAL) <= set(FIELDS)


def test_an_image_folder_without_path_is_asked_for():
    (problem,) = validate(imagefolder.get_config())
    assert problem.startswith("config.data.path: name the folder that holds train/<class>/")


def test_the_readme_lists_the_published_checkpoints():
    text = (Path(__file__).parents[1] / "configs" / "README.md").read_text()
    for name, published in PUBLISHED.items():
        revision = "the newest" if published.revision is None else f"`{published.revision[:7]}`"
        link = f"[{published.hub_id}](https://huggingface.co/{published.hub_id})"
        assert f"| `{name}` | {published.about} | {link} | {revision} |" in text
