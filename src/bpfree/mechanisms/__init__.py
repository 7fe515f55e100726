"""How rules are put into models: one file a kind of hooks."""
