"""One run: trained, logged, interrupted and continued (``runs``)."""
