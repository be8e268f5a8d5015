"""The exact cost of a recurrent network: plain Python, without NumPy and the C extension."""
