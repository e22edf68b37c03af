"""Lanes computed by torch's operations."""
