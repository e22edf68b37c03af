"""The two engines, which train runs: `loop` and `lanes` (named `stacked`)."""
