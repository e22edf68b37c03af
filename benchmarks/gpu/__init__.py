"""Every measurement and check of the stacked engine that needs a GPU: see `__main__`."""
