"""Trains parts of the generator, one objective a file."""
