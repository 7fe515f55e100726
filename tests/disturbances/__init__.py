"""Training that is disturbed, in numbers: by other threads (``threads``), and by Ctrl-C (``interrupts``)."""
