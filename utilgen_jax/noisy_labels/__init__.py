"""`python -m utilgen_jax.noisy_labels`: training on partly wrong labels."""
