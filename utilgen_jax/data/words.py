"""The words of classes: of each an entry of `config.data.class_names`, one word or several, 'crane|crane bird'."""

from __future__ import annotations

from collections.abc import Sequence

SEPARATOR = "|"


def split_words(entry: str) -> tuple[str, ...]:
    """The words of one entry, without blanks around them."""
    return tuple(word.strip() for word in entry.split(SEPARATOR))


def have_several(entries: Sequence[str]) -> bool:
    """Whether any entry holds several words; then all entries are words for prompts, and the classes keep their names.

    Where none does, the entries are the names of the classes.
    """
    return any(SEPARATOR in entry for entry in entries)


def word_problems(entries: Sequence[str]) -> list[str]:
    """Says of each entry in which a word is empty or stands twice what is wrong with it."""
    problems = []
    for number, entry in enumerate(entries, start=1):
        words = split_words(entry)
        repeated = [word for place, word in enumerate(words) if word in words[:place]]
        if not all(words):
            problem = f"an empty word; write words with {SEPARATOR} between them, such as 'crane bird|crane'"
        elif repeated:
            problem = f"{repeated[0]!r} stands there twice"
        else:
            continue
        problems.append(f"config.data.class_names: entry {number} of {len(entries)}, {entry!r}: {problem}")
    return problems


def class_words(entries: Sequence[str], class_names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The words of each class.

    Args:
        entries: `config.data.class_names`; empty for the data set's own names.
        class_names: K names of the classes that are used, the first ones of the data set.

    Returns:
        K tuples of words.
    """
    if not have_several(entries):
        return tuple((name,) for name in class_names)
    return tuple(split_words(entry) for entry in entries[: len(class_names)])
