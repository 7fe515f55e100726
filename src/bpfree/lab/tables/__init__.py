"""The commands on published tables: run what is missing of one, and show its cells beside the paper's.

``cells`` plans the runs of a recipe (:mod:`bpfree.lab.recipe`), ``workers`` run them, ``result`` makes numbers of the
records. ``table``, ``tune`` and ``recipe_page`` are the commands.
"""
