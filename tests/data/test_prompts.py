import pytest

from utilgen_jax.data import class_prompts
from utilgen_jax.errors import InputError


def test_each_class_gets_its_prompt():
    prompts = class_prompts("{class}: a {{bold}} photo of a {class}", ["sea_lion", "cat"])
    assert prompts == ["sea lion: a {bold} photo of a sea lion", "cat: a {bold} photo of a cat"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a photo", "lacks {class}"),
        ("a {colour} {class}", "found {colour}"),
        ("a {} {class}", "found {}"),
        ("a {class.__class__}", "only placeholder"),
        ("a {class!r}", "only placeholder"),
        ("a {class:>10}", "only placeholder"),
        ("a {class", "brace"),
        ("a } {class}", "brace"),
    ],
)
def test_templates_that_do_not_fit_are_refused(template, message):
    with pytest.raises(InputError, match=message):
        class_prompts(template, ["cat"])
