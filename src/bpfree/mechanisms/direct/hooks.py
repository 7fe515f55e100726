"""The hooks of a direct rule on its model: put in, taken out, and put in anew where modules have changed."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bpfree.errors import BpfreeWarning
from bpfree.mechanisms.base import Mechanism
from bpfree.module_tree import ModuleTree, followed, newcomers
from bpfree.plan import Plan
from bpfree.tabulate import fold_names, name_some
from bpfree.taps import Cut

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.rule import DirectRule


class DirectHooks(Mechanism):
    """Puts the hooks of a direct rule where they belong. What they do is left to the mechanism that derives from it.

    Args:
        rule: The rule.
        plan: The model, its taps and the options.
    """

    def __init__(self, rule: DirectRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        # For every tap its forward hooks, and the key of the rule's hook among them.
        self._hooks_of_taps: list[tuple[OrderedDict[int, Any], int]] = []
        self._note_modules()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy or a pickle, without what passes have shown: a copy finds that again."""
        return {**self.__dict__, "_known": {}}

    @property
    def cuts(self) -> dict[str, Cut]:
        """The places by name at which the gradient ends and no signal enters."""
        return {name: module for name, module in self.plan.model.named_modules() if isinstance(module, Cut)}

    def install(self) -> None:
        """Put hooks on the model, on every cut, every tap and on the modules where errors are taken."""
        # Bound methods and partials of them: a deep copy of the model then has a deep copy of the rule.
        plan = self.plan
        add = self._handles.append
        # Before other hooks change the arguments: in a second run they will change them again.
        add(plan.model.register_forward_pre_hook(self._note_arguments, prepend=True, with_kwargs=True))
        add(plan.model.register_forward_pre_hook(self._begin_pass, with_kwargs=True))
        for name, module in plan.taps.items():
            if module not in plan.errors.values():
                handle = module.register_forward_hook(partial(self.cut_at_tap, name))
                self._hooks_of_taps.append((module._forward_hooks, handle.id))  # type: ignore[arg-type]
                add(handle)
        for cut in self.cuts.values():
            add(cut.register_forward_hook(self._end_gradient))
        for name, module in plan.errors.items():
            add(module.register_forward_hook(partial(self._take_errors, name)))
        add(plan.model.register_forward_hook(self._end_pass, with_kwargs=True, always_call=True))
        if plan.streaming:
            self._guard_calls()

    def remove(self) -> None:
        """Take the hooks out."""
        super().remove()
        self._unguard_calls()
        self._hooks_of_taps.clear()

    def replan(self, plan: Plan) -> None:
        """Put the hooks into the model as ``plan`` describes it."""
        DirectHooks.remove(self)
        self.plan = plan
        self._note_modules()
        self.install()

    def _look_at_model(self) -> None:
        """Follow the model where its modules or its hooks have changed."""
        if self._tree.is_copy:
            self._note_modules()
            if self._has_lost_hooks(self._handles):
                self.replan(self.plan)
        elif not self.plan.is_stage and self._tree.has_changed():
            self._follow_model()
        self._let_cuts_be_last()

    def _follow_model(self) -> None:
        """Put the hooks where they belong in a model whose modules have changed, and warn of the change."""
        before, plan = self._known, followed(self.plan)
        now = dict(plan.model.named_modules())
        came, gone = newcomers(before, now), newcomers(now, before)
        self.replan(plan)
        taps = f"Taps are now {', '.join(fold_names(plan.taps))}."
        warnings.warn(
            f"the model has changed since {self.rule} was attached: {name_some(came)} came"
            f"{f', {name_some(gone)} went' if set(gone) - set(came) else ''}. {taps} To tap other modules, or where an "
            "optimizer steps the feedback, detach and attach again.",
            BpfreeWarning,
            stacklevel=2,
        )

    def _note_modules(self) -> None:
        self._tree = ModuleTree(self.plan.model)
        self._known = dict(self.plan.model.named_modules())

    def _let_cuts_be_last(self) -> None:
        """Move the rule's hooks last: the user's hooks then see outputs with graphs, and their losses reach them."""
        for hooks, cut in self._hooks_of_taps:
            if next(reversed(hooks)) != cut:
                hooks.move_to_end(cut)

    def _end_gradient(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Called behind each cut. The first look, whose graph is whole but for cuts, must not see more than a pass."""
        return None if self._switches().pauses else output.detach()

    def _note_arguments(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Called before a pass, with the model's arguments before any other hook changes them."""
        raise NotImplementedError

    def _begin_pass(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Called before a pass, with the arguments that the model gets; returns others, or None."""
        raise NotImplementedError

    def cut_at_tap(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        """Called behind each tap; returns what it hands on, or None."""
        raise NotImplementedError

    def _take_errors(self, place: str, module: nn.Module, args: Any, output: Any) -> Any:
        """Called behind each module where errors are taken; returns what it hands on, or None."""
        raise NotImplementedError

    def _end_pass(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Called behind the model, also if it has raised; returns what it hands on, or None."""
        raise NotImplementedError
