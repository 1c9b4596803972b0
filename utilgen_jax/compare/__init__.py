"""`python -m utilgen_jax.compare`: several methods over shots and seeds, with intervals."""
