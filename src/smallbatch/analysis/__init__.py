"""From result files to numbers: pure functions of data frames, and `evaluate` around them."""
