"""Damage in numbers: every kind of file that the lab reads, altered in many ways.

Run in a clone: ``PYTHONPATH=tests python -m lab.damage.search``.
"""
