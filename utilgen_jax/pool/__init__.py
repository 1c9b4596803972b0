"""The pool of synthetic images: planned, generated, stored, selected."""
