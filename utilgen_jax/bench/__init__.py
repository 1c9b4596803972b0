"""Timings of our code, and of the same computation in PyTorch: `python -m utilgen_jax.bench`."""
