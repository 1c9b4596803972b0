"""Prompts from class names, and from class names and captions."""

import re
import string
from collections.abc import Sequence

from utilgen_jax.errors import InputError

_WORDNET_ID = re.compile(r"n\d{8}")
_MEANING = {"class": "name of the class", "caption": "image's caption"}


def class_prompts(template: str, class_names: Sequence[str]) -> list[str]:
    """Fills the name of each class into a template.

    >>> class_prompts("a photo of a {class}", ["sea_lion", "cat"])
    ['a photo of a sea lion', 'a photo of a cat']

    Args:
        template: Text with `{class}`, once or more; braces that mean themselves are doubled.
        class_names: K names; underscores become spaces.

    Returns:
        K prompts.

    Raises:
        InputError: The template lacks `{class}`, or has other placeholders or a lone brace; or a name is a WordNet id,
            as ImageNet's classes are called, which tells a generator nothing.
    """
    _check_placeholders(template, ("class",))
    for name in class_names:
        if _WORDNET_ID.fullmatch(name):
            raise InputError(
                f"class {name!r} is a number of WordNet's, no words for a prompt: name the classes by "
                "config.data.classes_file (lines such as 'n01440764 tench') or config.data.class_names"
            )
    return [template.format(**{"class": _words(name)}) for name in class_names]


def caption_prompts(template: str, class_names: Sequence[str], captions: Sequence[str]) -> list[str]:
    """Fills the class and the caption of each image into a template.

    >>> caption_prompts("a photo of a {class}, {caption}", ["sea_lion", "cat"], ["on a rock", ""])
    ['a photo of a sea lion, on a rock', 'a photo of a cat']

    Args:
        template: Text with `{class}` and `{caption}`, see `class_prompts`.
        class_names: N names, each image's own; underscores become spaces.
        captions: N texts; where one is empty, blanks and commas at the prompt's ends go too.

    Returns:
        N prompts.

    Raises:
        InputError: The template lacks one of the two, or has other placeholders or a lone brace.
    """
    _check_placeholders(template, ("class", "caption"))
    prompts = []
    for name, caption in zip(class_names, captions, strict=True):
        prompt = template.format(**{"class": _words(name), "caption": caption})
        prompts.append(prompt if caption else prompt.strip(" ,"))
    return prompts


def _words(class_name: str) -> str:
    return class_name.replace("_", " ")


def _check_placeholders(template: str, names: Sequence[str]) -> None:
    """InputError unless the template has exactly these placeholders, each once or more."""
    known = " and ".join(f"{{{name}}}" for name in names)
    try:
        placeholders = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise InputError(f"prompt {template!r}: {error}; write {{{{ or }}}} for a brace that means itself") from error
    unknown = [name for name, *extra in placeholders if name not in names or any(extra)]
    if unknown:
        raise InputError(f"prompt {template!r}: placeholders are {known} alone; found {{{unknown[0]}}}")
    for name in names:
        if name not in [found for found, *_ in placeholders]:
            raise InputError(f"prompt {template!r} lacks {{{name}}}, the place for the {_MEANING[name]}")
