"""Forward passes that store no graph: a rule makes the parameters' gradients from the error alone.

Below the module where the error is taken the model runs without a graph. The output of that module leaves through one
autograd function. Its inputs are the parameters, and its backward pass returns the gradients that the rule makes from
the error. Above that module everything is ordinary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from bpfree.compiled_code import outside_compiled_code
from bpfree.distributed import shared_out
from bpfree.errors import OptionError
from bpfree.finite import require_finite
from bpfree.forward_mode.grad_mode import silent_rules
from bpfree.forward_mode.own_pass import aside
from bpfree.mechanisms.autograd import gradients_from_error
from bpfree.mechanisms.base import (
    Mechanism,
    Rule,
    exception_handled,
    not_a_tensor,
    not_reached,
    reached_twice,
    running_again,
)
from bpfree.mechanisms.function_transforms import refuse_transforms_of_pass
from bpfree.mechanisms.no_gradient_warnings import warn_of_a_call, warn_of_arguments, warn_of_results
from bpfree.module_tree import ModuleTree, followed
from bpfree.passes import Passes
from bpfree.plan import Plan
from bpfree.rerun.arguments import Call
from bpfree.rerun.own_graphs import own_graphs
from bpfree.rerun.saved_tensors import hooked_saved_tensors
from bpfree.rerun.trial import copied, without_trace
from bpfree.segments import graph_nodes

GradientsOfError: TypeAlias = Callable[[Tensor], Mapping[Tensor, Tensor]]
"""Maps dL/do, shaped as the output, to the gradients of the parameters that learn."""


@dataclass(eq=False)
class GraphlessPass:
    """A forward pass of the model.

    Attributes:
        changes: Undoes the changes of the pass when its output leaves; None if the pass is not the rule's.
        aside: Puts back the modes of the passes around it; None if the pass is the rule's.
        left: True if its output has left through the rule's function.
        seen: The mechanism's own record of the pass.
        graph: The output with the graph that the model itself has made below it, if the model differentiates.
        handled: The exception that was being handled when it began; None where there was none, as nearly always.
    """

    changes: ExitStack | None = None
    aside: ExitStack | None = None
    left: bool = False
    seen: Any = None
    graph: Tensor | None = None
    handled: BaseException | None = field(default_factory=exception_handled)

    def close(self) -> None:
        """Put back everything that the pass has changed."""
        stacks = self.changes, self.aside
        self.changes = self.aside = None
        for stack in stacks:
            if stack is not None:
                stack.close()


def _holds_weights(module: nn.Module) -> bool:
    """Return whether a call of a module uses weights; a parametrization is also called where one is only read."""
    if isinstance(module, parametrize.ParametrizationList):
        return False
    return bool(module._parameters) or parametrize.is_parametrized(module)


def _nothing(_: Tensor) -> None:
    """Store nothing, for a graph that is only looked at."""


def _asked_for(_: None) -> Tensor:
    raise RuntimeError("the model asks for gradients in its own forward pass")


class ForwardOnlyMechanism(Mechanism):
    """Switches the graph off when the model is called and on again where the error is taken."""

    is_given_error = True

    def __init__(self, rule: Rule, plan: Plan) -> None:
        super().__init__(rule, plan)
        self._passes: Passes[GraphlessPass] = Passes()
        self._tree = ModuleTree(plan.model)
        self._parts_handles: list[RemovableHandle] = []
        self._told = self._looked = False

    @abstractmethod
    def _start(self, call: Call, stack: ExitStack) -> None:
        """Prepare for a forward pass; ``stack`` takes everything that must be put back when the output leaves."""

    @abstractmethod
    def _gradients(self, output: Tensor, where: str) -> tuple[GradientsOfError, Tensor]:
        """Return the function that makes the gradients of this pass, and the output as a plain tensor."""

    # -- hooks ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put hooks on the model and on the module where the error is taken."""
        plan, add = self.plan, self._handles.append
        add(plan.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        if plan.error_module is plan.model:
            add(plan.model.register_forward_hook(self._leave))
        add(plan.model.register_forward_hook(self._end, with_kwargs=True, always_call=True))
        self._guard_calls()
        self._hook_parts()

    def remove(self) -> None:
        """Take the hooks out."""
        super().remove()
        self._unhook_parts()
        self._unguard_calls()
        for state in self._passes.clear():
            state.close()

    def _hook_parts(self) -> None:
        """Put hooks on the modules in the model."""
        plan, add = self.plan, self._parts_handles.append
        for name, module in plan.model.named_modules():
            if _holds_weights(module) and module is not plan.model and not self._hooks(name):
                add(module.register_forward_pre_hook(partial(self._reached, name)))
        if plan.error_module is not plan.model:
            add(plan.error_module.register_forward_hook(self._leave))

    def _hooks(self, name: str) -> bool:
        """Return whether the rule has its own hook on a layer, which calls :meth:`_reached`."""
        return False

    def _unhook_parts(self) -> None:
        for handle in self._parts_handles:
            handle.remove()
        self._parts_handles.clear()

    def _follow_model(self) -> None:
        """Hook the modules that came into the model since the last training pass."""
        if self._tree.has_changed():
            self._unhook_parts()
            self.plan, self._tree = followed(self.plan), ModuleTree(self.plan.model)
            self._hook_parts()

    def _reached(self, name: str, module: nn.Module, args: Any) -> None:
        """Warn once of a layer that runs without a call of the model."""
        if self._told or self._passes.now() is not None or not self.active or self.recomputing():
            return
        self._told = True
        warn_of_a_call(self.plan.model, name, self.rule)

    # -- passes --------------------------------------------------------------------------------------------------

    def _kept_in_a_plain_pass(self, call: Call, way: AbstractContextManager[Any]) -> list[str]:
        """Return the names of tensors with a graph that the model keeps after a pass on ``call``, within ``way``."""
        args, kwargs = copied(call)
        with without_trace(self.plan, call) as watched, silent_rules(), running_again(), way, watched:
            type(self.plan.model)._call_impl(self.plan.model, *args, **kwargs)  # type: ignore[no-untyped-call]
            places = [(holder, key, kept) for holder in self.plan.state.holders for key, kept in holder.tensors]
            return [holder.name(key) for holder, key, kept in places if kept.grad_fn is not None]

    @outside_compiled_code
    def _tell_of_kept(self, call: Call) -> None:
        """Warn of tensors that the model keeps with a graph in a plain pass, and without one in a pass of this rule."""
        try:
            names = self._kept_in_a_plain_pass(call, hooked_saved_tensors(_nothing, _asked_for))
        except RuntimeError:  # a model that differentiates in its own pass needs what its graph stores
            names = self._kept_in_a_plain_pass(call, own_graphs())
        if names:
            self.tell_once(
                "kept",
                f"the model keeps tensors on itself, {', '.join(map(repr, names[:3]))}, that have no graph under "
                f"{self.rule}: a loss of them teaches nothing. Use another rule (bpfree.DFA) where it is to; if they "
                "are only looked at, all is well.",
            )

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.active:
            refuse_transforms_of_pass(self.rule, (args, kwargs))
        if self.plan.verify and not self._looked and self.active and not torch.compiler.is_compiling():
            self._looked = True
            self._tell_of_kept((args, kwargs))
        state = GraphlessPass()
        for interrupted in self._passes.begin(state):
            interrupted.close()
        if not self.active:
            state.aside = aside(args, kwargs)
            return
        self._follow_model()
        warn_of_arguments((args, kwargs), self.rule)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            self._start((args, kwargs), stack)
            state.changes = stack.pop_all()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        state = self._passes.now()
        if state is None:
            return None
        if state.left:
            raise reached_twice(self.plan.error_name)
        if state.changes is None:
            return None
        try:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise not_a_tensor(self.plan, output)
            gradients, plain = self._gradients(output, self.plan.where)
        finally:
            state.close()
        state.left = True
        state.graph = output if output.requires_grad else None
        # All trainable parameters, because DDP waits for all of them; those that do not learn get None.
        parameters = [parameter for parameter in self.plan.model.parameters() if parameter.requires_grad]

        def of_all(error: Tensor) -> list[Tensor | None]:
            require_finite(error)
            found = gradients(error)
            return [shared_out(found[parameter], parameter) if parameter in found else None for parameter in parameters]

        return gradients_from_error(of_all, plain, parameters)

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        state = self._passes.end()
        if state is None:
            return
        missed = state.changes is not None
        state.close()
        # Where the pass has raised, the user gets that error, not ours.
        if missed and output is not None and exception_handled() is state.handled:
            raise not_reached(self.plan.error_name)
        if state.left and self.plan.error_name:
            warn_of_results(output, (args, kwargs), self.plan.error_name, self.rule)
        if state.graph is not None:
            _close_graph(state.graph, (args, kwargs), partial(_refuse_side_loss, self.plan.where, self.rule))

    def put_right(self) -> None:
        """Put back the changes of passes of this thread that were interrupted from the keyboard."""
        for state in self._passes.drop_interrupted():
            state.close()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Within this context a forward pass is plain autograd."""
        self.put_right()
        with super().paused():
            yield


def _close_graph(output: Tensor, given: Call, refuse: Callable[[Any], None]) -> None:
    """Call ``refuse`` if a gradient enters the graph that the model has made below ``output`` in a pass."""
    outside = {entry.grad_fn for entry in tree_leaves(given) if isinstance(entry, Tensor)}
    for node in graph_nodes(output, stops=outside):
        if node not in outside and not hasattr(node, "variable"):
            node.register_prehook(refuse)


def _refuse_side_loss(where: str, rule: Rule, _: Any) -> None:
    raise OptionError(
        f"a loss was made of a tensor that comes from below {where} and does not pass it. The model differentiates in "
        f"its own forward pass, which leaves a graph there, and {rule} has no gradients for it. detach() that tensor "
        "where it leaves the layers below, or use another rule (bpfree.DFA)."
    )
