"""The page of plots: what was measured, what of it is a target, how it is drawn and said."""
