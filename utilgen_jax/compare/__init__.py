"""`python -m utilgen_jax.compare`: compares methods over shots and seeds, with confidence intervals."""
