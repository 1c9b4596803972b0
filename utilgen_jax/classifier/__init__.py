"""The downstream classifier: model, losses, training."""
