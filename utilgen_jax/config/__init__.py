"""The configuration. Nothing in here imports JAX."""
