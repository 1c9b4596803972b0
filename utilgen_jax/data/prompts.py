"""Prompts from class names."""

import string
from collections.abc import Sequence

from utilgen_jax.errors import InputError


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
        InputError: The template lacks `{class}`, or has other placeholders or a lone brace.
    """
    try:
        placeholders = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise InputError(f"prompt {template!r}: {error}; write {{{{ or }}}} for a brace that means itself") from error
    unknown = [name for name, *extra in placeholders if name != "class" or any(extra)]
    if unknown:
        raise InputError(f"prompt {template!r}: the only placeholder is {{class}}; found {{{unknown[0]}}}")
    if not placeholders:
        raise InputError(f"prompt {template!r} lacks {{class}}, the place for the name of the class")
    return [template.format(**{"class": name.replace("_", " ")}) for name in class_names]
