"""The utility of synthetic images to the task: cross-fitted weights, ensembles, difficulty."""
