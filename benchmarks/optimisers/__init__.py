"""What the optimisers with moments cost beside plain SGD."""
