"""Save the switches of a thread before a pass, and put them back after it.

Each context puts back what it has switched. Ctrl-C may come between the two, inside torch's own contexts too: then
whoever runs the pass puts everything back at once.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.overrides import _pop_mode
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode

from bpfree.forward_mode.dual_level import dual_level
from bpfree.forward_mode.eager import eager
from bpfree.forward_mode.grad_mode import put_back_silence, rules_are_silent


@dataclass(frozen=True)
class Switches:
    """Gradients, tangents, modes and the level of dual numbers, of one thread.

    Attributes:
        gradients: True if they are on.
        tangents: True if they are on.
        modes: The number of function modes that are on.
        dispatch_modes: The number of dispatch modes that are on.
        silent: True if a pass is under way from which no rule is to learn.
        passes: The passes of this thread in the level of dual numbers.
        eager: Those that want no compiled code.
    """

    gradients: bool
    tangents: bool
    modes: int
    dispatch_modes: int
    silent: bool
    passes: set[object]
    eager: set[object]

    @classmethod
    def now(cls) -> Switches:
        """Return them as they are."""
        return cls(
            gradients=torch.is_grad_enabled(),
            tangents=torch._C._is_fwd_grad_enabled(),
            modes=torch._C._len_torch_function_stack(),
            dispatch_modes=torch._C._len_torch_dispatch_stack(),
            silent=rules_are_silent(),
            passes=dual_level.mine(),
            eager=eager.mine(),
        )

    def put_back(self) -> None:
        """Set them as they were."""
        while torch._C._len_torch_function_stack() > self.modes:
            _pop_mode()  # type: ignore[no-untyped-call]
        while torch._C._len_torch_dispatch_stack() > self.dispatch_modes:
            _pop_dispatch_mode()
        torch._C._set_fwd_grad_enabled(self.tangents)
        torch._C._set_grad_enabled(self.gradients)
        put_back_silence(self.silent)
        dual_level.leave_others(self.passes)
        eager.leave_others(self.eager)


@contextmanager
def switches_put_back() -> Generator[None]:
    """Within this context a pass runs; if it does not come to its end, its switches are put back."""
    before = Switches.now()
    try:
        yield
    except BaseException:
        before.put_back()
        raise
