"""How good a race's choice of batch size and learning rate is, replayed on committed results."""
