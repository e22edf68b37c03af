"""Computes numbers from result files: pure functions of data frames, and `evaluate`."""
