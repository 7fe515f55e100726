"""Forward-mode differentiation: passes with tangents, and the estimates that come of them."""
