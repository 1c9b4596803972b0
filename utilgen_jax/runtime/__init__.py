"""Devices, shardings, schedules and files: what every training loop stands on."""
