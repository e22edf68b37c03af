"""What many take: columns of next to no work on a simulated Ray cluster, and encoded images."""
