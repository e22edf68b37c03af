"""Where and how a column is trained."""
