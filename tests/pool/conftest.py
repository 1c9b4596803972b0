"""The tiny checkpoints of `tests.generator`."""

from tests.generator.conftest import checkpoint, copy_of, loaded  # noqa: F401
