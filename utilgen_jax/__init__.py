"""utilgen_jax: synthetic training images, chosen and shaped by how much they help the task."""

__version__ = "0.1.0"
