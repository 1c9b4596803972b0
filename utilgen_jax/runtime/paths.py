"""Paths as people write them."""

import os


def expand(path: str) -> str:
    """Puts the home folder in place of a leading `~` or `~user`; a user that is not known stays."""
    return os.path.expanduser(path)


def is_without_home(path: str) -> bool:
    """Whether a path starts with `~user` of a user that is not known."""
    return expand(path).startswith("~")


def normalized(path: str) -> str:
    """The same text for all ways to write a path, for comparisons."""
    return os.path.realpath(expand(path)) if path else path
