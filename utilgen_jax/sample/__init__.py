"""`python -m utilgen_jax.sample`: images from prompts."""
