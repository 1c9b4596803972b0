"""`python -m utilgen_jax.pretraining`: a small Stable Diffusion from nothing."""
