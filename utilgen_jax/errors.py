"""The one error that a person, not the program, can mend, and what its message shares."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: a config field, a file, a checkpoint, a data set.

    The message is for the person at the keyboard: it names the field or the file and says the way out. Commands print
    it without a traceback and leave with exit status 2 (see `utilgen_jax.main`).
    """


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the valid name most like this one; the part after the dot counts too (`step`, `valuation.steps`)."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        name_end, end = name.rpartition(".")[2], candidate.rpartition(".")[2]
        last = difflib.SequenceMatcher(None, name_end, end).ratio()
        begun = 0.9 if end.startswith(name_end) else 0.0
        return max(whole, 0.95 * last, begun)

    return max(names, key=likeness)


def line_of(error: Exception) -> str:
    """Returns an error of a library as one line: 300 characters of its text, or its kind where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__
