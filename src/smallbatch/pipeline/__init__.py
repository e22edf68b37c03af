"""Carries out the commands: combines training, terminal and tracking."""
