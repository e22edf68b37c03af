"""Other ways to train a column, by JAX: needs neither torch nor this package's dependencies."""
