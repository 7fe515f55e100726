"""Direct feedback that learns."""
