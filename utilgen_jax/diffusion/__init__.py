"""Noise schedules, samplers and losses: pure functions, their tables always float32."""
