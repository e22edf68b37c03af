"""Measuring how fast columns train."""
