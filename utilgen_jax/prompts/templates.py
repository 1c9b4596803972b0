"""Prompts from class names and captions."""

import re
import string
from collections.abc import Sequence

from utilgen_jax.errors import InputError

_WORDNET_ID = re.compile(r"n\d{8}")
_MEANING = {"class": "class name", "caption": "caption of the image"}


def class_prompts(template: str, class_names: Sequence[str]) -> list[str]:
    """Fills class names into a template.

    >>> class_prompts("a photo of a {class}", ["sea_lion", "cat"])
    ['a photo of a sea lion', 'a photo of a cat']

    Args:
        template: text with `{class}` at least once; literal braces are doubled.
        class_names: K names; underscores become spaces.

    Returns:
        K prompts.

    Raises:
        InputError: the template lacks `{class}`, has other placeholders or an unmatched brace; or a name is a WordNet
            id, such as ImageNet's, which means nothing to a text encoder.
    """
    _check_placeholders(template, ("class",))
    for name in class_names:
        if _WORDNET_ID.fullmatch(name):
            raise InputError(
                f"class {name!r} is a WordNet id, not a name for a prompt: set config.data.classes_file (lines such as "
                "'n01440764 tench') or config.data.class_names"
            )
    return [template.format(**{"class": _words(name)}) for name in class_names]


def caption_prompts(template: str, class_names: Sequence[str], captions: Sequence[str]) -> list[str]:
    """Fills the class name and the caption of each image into a template.

    >>> caption_prompts("a photo of a {class}, {caption}", ["sea_lion", "cat"], ["on a rock", ""])
    ['a photo of a sea lion, on a rock', 'a photo of a cat']

    Args:
        template: text with `{class}` and `{caption}`, see `class_prompts`.
        class_names: class name of each image, N; underscores become spaces.
        captions: N captions; for an empty one, blanks and commas at the ends of the prompt are removed.

    Returns:
        N prompts.

    Raises:
        InputError: the template lacks a placeholder, or has other placeholders or an unmatched brace.
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
    """Raises InputError unless the template has exactly these placeholders, each at least once."""
    known = " and ".join(f"{{{name}}}" for name in names)
    try:
        placeholders = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise InputError(f"prompt {template!r}: {error}; write {{{{ or }}}} for a literal brace") from error
    unknown = [name for name, *extra in placeholders if name not in names or any(extra)]
    if unknown:
        raise InputError(f"prompt {template!r}: the only placeholders are {known}; found {{{unknown[0]}}}")
    for name in names:
        if name not in [found for found, *_ in placeholders]:
            raise InputError(f"prompt {template!r} lacks {{{name}}}, the {_MEANING[name]}")
