"""Noise schedules, samplers and losses: pure functions with float32 tables."""
