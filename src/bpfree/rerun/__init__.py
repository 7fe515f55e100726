"""Running a model again without a trace: what a pass starts from, changes and leaves is noted and put back."""
