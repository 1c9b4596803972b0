"""Real images: sources, splits, scaling and augmentation."""
