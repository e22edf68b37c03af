"""What runs and columns leave on disk, and the reading of it."""
