"""The command that trains the generator on a folder of images, without an experiment around it."""
