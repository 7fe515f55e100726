"""The terminal: the progress of runs, and the table at their end."""
