"""Lanes on a GPU by Triton kernels; activations are (K, m, H, W, C), channels last."""
