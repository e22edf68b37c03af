"""How fast photographs are decoded for training."""
