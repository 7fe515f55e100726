"""What works with what: every rule under every feature of PyTorch. The matrix, its checks, and the page of docs/."""
