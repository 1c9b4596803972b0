"""Linen modules and nothing else; the only place that imports `flax.linen`.

Sub-modules carry the names of their torch counterparts (diffusers, transformers), so that the path of a parameter,
joined by dots, is the torch module's path. Images and feature maps are NHWC, convolution kernels HWIO.
"""
