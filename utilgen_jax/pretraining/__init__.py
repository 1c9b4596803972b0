"""`python -m utilgen_jax.pretraining`: pretrains a small Stable Diffusion from scratch."""
