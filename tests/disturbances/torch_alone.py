"""How often Ctrl-C leaves gradients off without any rule: torch's own contexts may be interrupted as they end.

PYTHONPATH=tests python -m disturbances.torch_alone
"""

from __future__ import annotations

import random
import signal

import torch
from torch import nn

TIMES = 6000


def main() -> None:
    """Interrupt a plain training loop at random moments, and print in how many of them gradients stayed off."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    torch.set_num_threads(1)
    model = nn.Sequential(*[part for _ in range(3) for part in (nn.Linear(8, 8), nn.Tanh())])
    optimizer, x, moments, off = torch.optim.Adam(model.parameters()), torch.randn(4, 8), random.Random(0), 0

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    train(20)  # an interrupt while the optimizer makes its state would leave half of it
    for _ in range(TIMES):
        try:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-4, 3e-3))
            train(1000)
        except KeyboardInterrupt:
            off += not torch.is_grad_enabled()
            torch.set_grad_enabled(True)
    print(f"torch {torch.__version__}: gradients stayed off after {off} of {TIMES} interrupts")


if __name__ == "__main__":
    main()
