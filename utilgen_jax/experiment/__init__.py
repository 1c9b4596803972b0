"""A run's data, devices and cached steps."""
