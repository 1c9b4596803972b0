"""`python -m utilgen_jax.plan`: what a config needs on TPUs."""
