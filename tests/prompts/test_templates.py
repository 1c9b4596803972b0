import re

import pytest

from utilgen_jax.errors import InputError
from utilgen_jax.prompts.templates import caption_prompts, class_prompts


def test_each_class_gets_its_prompt():
    prompts = class_prompts("{class}: a {{bold}} photo of a {class}", ["sea_lion", "cat"])
    assert prompts == ["sea lion: a {bold} photo of a sea lion", "cat: a {bold} photo of a cat"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a photo", "lacks {class}"),
        ("a {colour} {class}", "found {colour}"),
        ("a {} {class}", "found {}"),
        ("a {class.__class__}", "the only placeholders are {class};"),
        ("a {class!r}", "the only placeholders are {class};"),
        ("a {class:>10}", "the only placeholders are {class};"),
        ("a {class", "brace"),
        ("a } {class}", "brace"),
    ],
)
def test_templates_that_do_not_fit_are_refused(template, message):
    with pytest.raises(InputError, match=re.escape(message)):
        class_prompts(template, ["cat"])


def test_a_wordnet_id_is_no_name():
    with pytest.raises(InputError, match="'n01440764' is a WordNet id.*config.data.classes_file"):
        class_prompts("a photo of a {class}", ["cat", "n01440764"])


def test_class_and_caption_of_each_image():
    prompts = caption_prompts("a photo of a {class}, {caption}", ["sea_lion", "cat", "cat"], ["on a rock", "", "{a}"])
    assert prompts == ["a photo of a sea lion, on a rock", "a photo of a cat", "a photo of a cat, {a}"]
    assert caption_prompts("{caption}, {class}", ["cat"], [""]) == ["cat"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {class}", "lacks {caption}"),
        ("a photo, {caption}", "lacks {class}"),
        ("a {class}, {text}", "{class} and {caption}; found {text}"),
    ],
)
def test_caption_templates_that_do_not_fit_are_refused(template, message):
    with pytest.raises(InputError, match=re.escape(message)):
        caption_prompts(template, ["cat"], ["asleep"])
