"""Who runs what: a database holds a record of every finished run, and says which process is at which of the others.

:class:`~bpfree.lab.queue.ledger.Ledger` is the way in. A run is known by its key; nothing here knows of recipes.
"""
