"""The commands on published tables: run what is missing of one, and show its cells beside the paper's.

``plan`` makes cells and their runs of a recipe (:mod:`bpfree.lab.recipe`), ``workers`` run them, ``result`` makes
numbers of the records. ``table``, ``tune`` and ``page`` are the commands.
"""
