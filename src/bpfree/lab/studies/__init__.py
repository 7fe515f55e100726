"""Computations for tables and figures that train nothing; recipes name these functions."""
