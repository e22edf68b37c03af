"""Decides where and how a column is trained."""
