"""The queue of runs: a database holds a record of every finished run, and which process works at which other one.

:class:`~bpfree.lab.queue.ledger.Ledger` is the way in. A run is known by its key; nothing here knows of recipes.
"""
