"""The generator: a frozen Stable Diffusion checkpoint, how it is conditioned, and how it is sampled."""
