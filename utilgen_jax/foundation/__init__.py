"""Small Stable Diffusions made from nothing: the embedded glyph world of printed digits, or your own pictures'."""
