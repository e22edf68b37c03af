"""Reads and checks the params file, and provides ready-made ones."""
