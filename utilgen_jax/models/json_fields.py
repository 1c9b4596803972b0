"""What may stand in the JSON files of a checkpoint: each field is honoured, without effect here, or refused by name.

A file's table has a line a field, whose `Kind` says which values are supported. A field with a single supported value
is as good as honoured; `WITHOUT_EFFECT` accepts any. A field that no table knows may be null or false.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from utilgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Kind:
    """The supported values of a field.

    Attributes:
        about: what they are, for messages.
        accepts: tells them from others.
        is_number: whether they are numbers.
    """

    about: str
    accepts: Callable[[Any], bool]
    is_number: bool = False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(minimum: int) -> Kind:
    """Whole numbers from a smallest one up."""
    return Kind(f"a whole number from {minimum} up", lambda value: _is_whole(value) and value >= minimum, True)


def _is_finite(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


NUMBER = Kind("a finite number", _is_finite, True)
POSITIVE = Kind("a number above 0", lambda value: _is_finite(value) and value > 0, True)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
WITHOUT_EFFECT = Kind("anything", lambda value: True)


def only(*values: Any) -> Kind:
    """These values alone."""

    def accepts(value: Any) -> bool:
        # 1 == True in Python, and 0 == False
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)

    return Kind(" or ".join(map(repr, values)), accepts)


OFF = only(None, False)


def optional(kind: Kind) -> Kind:
    """The values of another kind, and null."""
    return Kind(f"{kind.about}, or None", lambda value: value is None or kind.accepts(value), kind.is_number)


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """Lists of values of another kind, not empty."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or not value:
            return False
        return all(map(kind.accepts, value)) and length in (None, len(value))

    return Kind(f"a list, each entry {kind.about}" if length is None else f"a list of {length}", accepts)


def either(*kinds: Kind) -> Kind:
    """The values of several kinds."""
    about = ", or ".join(kind.about for kind in kinds)
    is_number = any(kind.is_number for kind in kinds)
    return Kind(about, lambda value: any(kind.accepts(value) for kind in kinds), is_number)


def read_fields(where: str, table: Mapping[str, Kind], config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the fields of a file.

    Args:
        where: the file, for messages.
        table: its fields.
        config: the file, parsed.

    Returns:
        The fields that the table has; lists have become tuples, which are hashable.

    Raises:
        InputError: a value is not supported, or a field is unknown; lists all.
    """
    problems = []
    for name, value in config.items():
        if name in table:
            if not table[name].accepts(value):
                problems.append(f"{where}: {name} = {value!r} is not supported; {table[name].about} is")
        elif not name.startswith("_") and value is not None and value is not False:
            problems.append(
                f"{where}: {name} = {value!r} is a field that is not known; remove it if the model does without it"
            )
    if problems:
        raise InputError("\n".join(problems))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items() if name in table}
