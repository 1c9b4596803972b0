"""The embedded glyph world: printed digits, words that describe them, a miniature Stable Diffusion trained on both."""
