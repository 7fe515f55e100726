"""What gpu.py measures on one device: each module makes the cells of one group of measurements."""
