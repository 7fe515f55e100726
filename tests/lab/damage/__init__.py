"""Damage in numbers: every kind of file that the lab reads, altered in many ways. ``python -m damage.search``."""
