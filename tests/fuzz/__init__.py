"""A search over made-up models: laws that need no knowledge of a rule, tried on models that nobody thought of."""
