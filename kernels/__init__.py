"""The cells in Python: the NumPy specification and the Numba kernels."""
