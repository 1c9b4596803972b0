"""Prompts: templates, attributes and captions."""
