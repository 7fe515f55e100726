"""What is computed for tables and figures without training anything; recipes name these functions."""
