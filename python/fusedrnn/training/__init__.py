"""Training: what a forward pass remembers, and the gradients that come of it."""
