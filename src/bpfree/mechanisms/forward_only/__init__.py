"""The mechanisms of the rules without a backward pass."""
