"""The language of a table: how a recipe is written, found, read and merged, and what it lets ``bpfree tune`` search.

:mod:`~bpfree.lab.recipe.schema` holds what a recipe says, :mod:`~bpfree.lab.recipe.reading` checks a file on the way to
it. Nothing here knows of runs.
"""
