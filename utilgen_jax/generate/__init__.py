"""`python -m utilgen_jax.generate`: more images from what a run has trained, as a data set for other tools."""
