"""Augmentations and mixing of training images."""
