"""What a Ray cluster costs beside training: many columns of next to no work on simulated nodes."""
