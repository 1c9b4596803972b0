"""Fingerprints of data: digests by which a later run knows whether it reads the same."""

import hashlib
from collections.abc import Iterable

Fingerprints = dict[str, str]  # name of an input, as messages say it -> digest


def new_hash() -> hashlib.blake2b:
    """An empty hash."""
    return hashlib.blake2b(digest_size=16)


def digest(parts: Iterable[bytes]) -> str:
    """The digest of a sequence of bytes, in hexadecimal digits."""
    hashed = new_hash()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.hexdigest()
