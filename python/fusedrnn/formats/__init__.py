"""What other libraries store, and how."""
