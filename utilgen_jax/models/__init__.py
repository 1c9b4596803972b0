"""Linen modules; no other folder defines any.

Sub-modules have the names of their torch counterparts (diffusers, transformers): the path of a parameter, joined by
dots, is the path of the torch module. Images and feature maps are NHWC, convolution kernels HWIO.
"""
