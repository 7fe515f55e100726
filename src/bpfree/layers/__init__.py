"""Linear layers: which kinds are known, and the gradients of their inputs and weights."""
