"""What synthetic images are worth to the task: cross-fitted weights, ensembles, difficulty."""
