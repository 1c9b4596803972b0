"""The image files that are read: all formats of Pillow's registry that it decodes by itself."""

from collections.abc import Collection
from functools import cache

from PIL import Image

# Formats that Pillow only recognises, or hands to Ghostscript: a program that would run on what somebody else wrote.
_NOT_DECODED = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS")


@cache
def image_suffixes() -> Collection[str]:
    """The endings of image files, such as '.tif', in lower case; '.heic' where a plug-in has taught Pillow that."""
    formats = Image.registered_extensions()
    return frozenset(ending for ending, name in formats.items() if name in Image.OPEN and name not in _NOT_DECODED)
