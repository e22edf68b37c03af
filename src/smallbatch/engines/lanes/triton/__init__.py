"""Lanes on a GPU by Triton kernels: lane after lane, channels last, (K, m, H, W, C)."""
