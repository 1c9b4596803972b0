"""Decodes many images: tells at once of all that are broken, and in one line of those whose values needed a guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.notes import warn

_SHOWN = 10  # broken images by name
_notes: ContextVar[Counter[str] | None] = ContextVar("notes", default=None)
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def note(kind: str) -> None:
    """Counts an image of which `decode_all` is to tell something: what follows "3 of 20 images"."""
    counter = _notes.get()
    if counter is not None:
        counter[kind] += 1


def is_counted() -> bool:
    """Whether this is called within `decode_all`, so that notes are told."""
    return _notes.get() is not None


@contextmanager
def quietly() -> Iterator[None]:
    """Within the block `decode_all` tells nothing but what is broken: of images that are read again and again."""
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)


def decode_all(name: str, number: int, decode: Callable[[int], None]) -> None:
    """Decodes images, and tells at once of all that are broken.

    Args:
        name: of the data set, for messages.
        number: of images, N.
        decode: decodes one of them, 0..N-1.

    Raises:
        InputError: images cannot be decoded; names the first ones, and how many there are.
    """
    problems: list[str] = []
    notes: Counter[str] = Counter()
    before = _notes.set(notes)
    try:
        for place in range(number):
            try:
                decode(place)
            except InputError as error:
                problems.append(str(error))
    finally:
        _notes.reset(before)
    if problems:
        more = len(problems) - _SHOWN
        rest = [f"{name}: and {more} more of the {number} images read"] if more > 0 else []
        raise InputError("\n".join([*problems[:_SHOWN], *rest]))
    for kind, count in () if _quiet.get() else notes.items():
        warn(f"{name}: {count} of {number} images {kind}")
