"""Paths as people write them."""

import os
import re

_IN_BUCKET = re.compile(r"(gs|s3|file|memory)://")


def is_in_bucket(path: str) -> bool:
    """Whether a path is one in a bucket, see `buckets`."""
    return _IN_BUCKET.match(path) is not None


def is_url(path: str) -> bool:
    """Whether a path is written as a URL, of a bucket or of what cannot be read."""
    return re.match(r"\w+://", path) is not None


def expand(path: str) -> str:
    """Puts the home folder in place of a leading `~` or `~user`; a user that is not known stays."""
    return os.path.expanduser(path)


def is_without_home(path: str) -> bool:
    """Whether a path starts with `~user` of a user that is not known."""
    return expand(path).startswith("~")


def normalized(path: str) -> str:
    """The same text for all ways to write a path, for comparisons."""
    if not path or is_url(path):
        return path.rstrip("/")
    return os.path.realpath(expand(path))
