"""What several tests need: small models, data and recipes, networks by hand, processes, docs/support.md's matrix."""
