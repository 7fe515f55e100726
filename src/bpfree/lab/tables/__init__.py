"""Published tables as recipes: what is missing of one is run, and its cells stand beside the paper's.

``recipe`` reads a file, ``plan`` makes runs of its cells, ``ledger`` keeps what was found and says who runs what,
``workers`` run it, ``result`` makes numbers of it. ``table``, ``tune`` and ``page`` are the commands.
"""
