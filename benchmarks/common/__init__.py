"""What the benchmarks share: networks, ways to train them, measuring, and the files with the results."""
