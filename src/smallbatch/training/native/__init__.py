"""C++ kernels for K lanes on a CPU, and what builds and feeds them."""
