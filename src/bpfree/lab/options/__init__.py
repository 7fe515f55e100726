"""The commands' options, and the parser that reads them from the command line.

``training`` has those of the commands that train; ``generate``, ``predict`` and ``render`` those of the commands on a
run that has been trained; ``command_line`` writes a command as it can be typed again.
"""
