"""Axes: which of them are samples, positions and features, in the error and at every tap."""
