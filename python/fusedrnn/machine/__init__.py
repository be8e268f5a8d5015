"""What a machine can do, and how fast a network can be on it."""
