"""Carries out the training of a column: chunks, worker processes and reasons to stop."""
