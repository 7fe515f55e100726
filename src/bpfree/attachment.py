"""attach(): put a learning rule into a model; Attachment: what is then there, and the way out."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.checks import check_attachable, check_options, check_sample_axes, check_within, error_modules
from bpfree.errors import (
    OptionError,
    StateError,
    TargetsError,
)
from bpfree.feedback.lazy_buffers import name_of
from bpfree.feedback.projection import Matrix, Projection
from bpfree.mechanisms.base import Mechanism, Rule
from bpfree.mechanisms.layerwise.rule import LayerwiseRule
from bpfree.mechanisms.layerwise.weight_mirror import WeightMirrorMechanism
from bpfree.plan import Plan, SampleAxes
from bpfree.registry import keep, make_room
from bpfree.rerun.snapshot import preserved
from bpfree.suggest import suggested_blocks
from bpfree.tabulate import fold, tabulate
from bpfree.taps import TapChoice, select_taps, tensor_keys


def attach(
    model: nn.Module,
    rule: Rule,
    *,
    taps: TapChoice = None,
    error_at: str | Sequence[str] | None = None,
    batch_dims: int | None = None,
    sample_axes: SampleAxes = None,
    window: int = 1,
    within: LayerwiseRule | None = None,
    streaming: bool = False,
    threads: int | None = 1,
    seed: int = 0,
    verify: bool = True,
    example_inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
) -> Attachment:
    """Let ``model`` learn by ``rule``; the training loop stays as it is.

    The model's class, forward signature and ``state_dict`` keys do not change: hooks go in, and
    :meth:`Attachment.detach` takes them out. The errors below come from the model's first forward pass, or from
    ``attach`` itself where it runs one (``example_inputs``).

    Args:
        model: Any module. Its output, or that of the module ``error_at``, is a tensor, or a tuple, dictionary or
            dataclass of tensors: then each tensor has an error of its own.
        rule: The learning rule, for example ``bpfree.DFA()``.
        taps: The modules whose outputs get feedback: a type or several types of modules, names or glob patterns
            (``"blocks.*.mlp"``), or a predicate ``(name, module) -> bool``. None: every non-linearity module and every
            :class:`bpfree.Tap`. Where a module returns a tuple, list, dictionary or object, its first floating point
            tensor is tapped; a mapping names another by index, key or path: ``{"rnn": (1, 0), "blocks.*": "hidden"}``.
            ``"blocks"``: repeated blocks and ``error_at`` as :func:`bpfree.suggest_taps` finds them (for one module of
            that name pass ``["blocks"]``). A rule without taps uses them only for :func:`bpfree.alignment`.
        error_at: The name of the module at whose output the error is taken; the layers above it get exact gradients.
            Use it for a transformer's vocabulary head, or for a model that computes its own loss. With several names,
            ``("policy", "value")``, every tap gets the sum of the signals of the errors above it, and each error has
            feedback of its own. Default: the model's output, before a softmax, log_softmax or sigmoid that ends it;
            ``""`` takes the error after that function.
        batch_dims: The number of leading dimensions that are samples and not features, for the error and all taps.
            None finds it: the first dimension; and where the error has its channels last also the dimensions between
            (tokens, nodes, points), as far as taps have them in the same place. A tap without them (an encoder's
            tokens of another length) gets the sum of its sample's errors. A tap that is called once for each step of a
            loop over time gets that step's error.
        sample_axes: The axes that number samples, for tensors with time first or classes in the middle: one axis, or
            several in the order in which the error and the taps share them. ``{"*": 1}`` for taps ``(T, N, d)`` under
            an error ``(N, c)``, by the name or glob pattern of taps; ``{"error": (0, 2)}`` for an error
            ``(N, classes, T)``; ``(1, 0)`` for the error and all taps. Axes that are not named are found.
        window: For direct rules: how many segments a signal passes. The parameters of a segment learn from the signal
            that enters ``window`` - 1 taps further up and is carried down through the segments between. 1 is the plain
            rule; a window as deep as the network is backpropagation. Each further step costs one pass of input
            gradients.
        within: For direct rules: a layerwise rule that carries signals down inside a segment and a window, in place of
            backpropagation's transposed weights. With ``bpfree.KolenPollack()`` no weight below ``error_at`` is
            transported.
        streaming: For direct rules: store no graph. ``loss.backward()`` runs the model a second time, with the same
            random numbers, and each segment learns and is dropped at once: only one segment's activations are in
            memory. The arithmetic is that of one step of backpropagation, the numbers are those of the stored graph.
            Your forward hooks run twice, and no path may lead around a tap.
        threads: For direct rules on a CPU: how many segments run at the same time in the backward pass. With 1 they run
            one after another, each on all of torch's threads, which is faster for large layers; several threads are
            faster for many small layers. None measures both in the first passes and keeps the faster. The numbers are
            the same. Hooks on parameters are called from those threads.
        seed: The seed of everything that the rule draws. The global random state is neither read nor changed.
        verify: For direct rules: run the first pass of every kind with its whole graph, to find side heads and further
            losses and to check that the model learns what the rule says (:func:`bpfree.verify`). False saves these
            passes; a model that returns one tensor and keeps no tensor on itself learns the same.
        example_inputs: A tensor, or the arguments of one forward pass (a tuple, or a mapping of keyword arguments). It
            is run at once to find the shapes. Without it the first forward pass finds them; the numbers drawn are the
            same.

    Returns:
        The attachment, an ``nn.Module`` with the rule's state and a context manager that detaches.

    Raises:
        OptionError: ``rule`` or its feedback, ``seed``, ``batch_dims``, ``sample_axes``, ``window``, ``within``,
            ``streaming`` or ``threads`` means nothing.
        TapSelectionError: ``taps`` matches nothing, or is None and the model has no non-linearity module.
        ErrorPlacementError: There is no module ``error_at``. In a forward pass: it is not reached, reached twice,
            before every tap, or before one that ``taps`` names; its output is not one floating point tensor, or not
            what the rule needs there; nothing that learns lies between it and the last tap.
        TapOutputError: In a forward pass: a tap's output is not one floating point tensor.
        TapShapeError: In a forward pass: a tap does not share the error's samples, or sizes leave open which axes are
            which.
        FeedbackSizeError: In a forward pass: the matrices would be larger than ``Feedback(max_bytes=)``.
        StreamingError: In a forward pass: a path leads around a cut.
        SecondRunError: In a forward pass or its backward pass: the model runs again, and an argument or a weight is not
            what it was.
        SecondDerivativeError: In a backward pass: gradients of gradients are asked for.
        ForwardDerivativeError: In a forward pass: :class:`bpfree.ForwardGradient` meets a layer without a forward-mode
            derivative.
        UnsupportedLayerError: No layer of the model can be served by the rule.
        AlreadyAttachedError: ``model``, a part of it, or a model that shares layers or taps with it has a rule already.
        AlreadyShardedError: ``fully_shard`` has it already; attach first.
    """
    check_options(rule, window, streaming, threads)
    check_attachable(model, seed, batch_dims)
    if taps == "blocks":
        suggestion = suggested_blocks(model)
        taps, error_at = suggestion.taps, suggestion.error_at if error_at is None else error_at
    chosen = select_taps(model, taps)
    check_sample_axes(sample_axes, batch_dims, chosen)
    _let_compilers_see_hooks()
    plan = Plan(
        model=model,
        taps=chosen,
        explicit=taps is not None,
        errors=error_modules(model, error_at),
        seed=seed,
        batch_dims=batch_dims,
        window=window,
        streaming=streaming,
        threads=threads,
        placed=error_at is not None,
        verify=verify,
        tensor_keys=tensor_keys(taps, chosen),
        sample_axes=sample_axes,
    )
    mechanism = rule.mechanism(plan)
    check_within(rule, mechanism, within)
    make_room(plan)
    attachment = Attachment(rule, mechanism, within=None if within is None else within.mechanism(plan))
    if example_inputs is not None:
        try:
            _run_once(attachment, example_inputs)
        except BaseException:
            attachment.detach()
            raise
    return attachment


def _let_compilers_see_hooks() -> None:
    """Let no code that was compiled for a model without hooks serve one of the same class that has a rule."""
    # Imported here: it takes two seconds, and whoever asks for --help attaches nothing.
    from torch._dynamo import config as dynamo

    # By default torch does not look whether modules have hooks now that had none when it compiled.
    if dynamo.skip_nnmodule_hook_guards:
        dynamo.skip_nnmodule_hook_guards = False
        torch.compiler.reset()


def _run_once(attachment: Attachment, inputs: Tensor | tuple[Any, ...] | Mapping[str, Any]) -> None:
    """Run one forward pass, and put buffers, counters and random state back."""
    model = attachment.model
    with preserved(model, attachment), attachment.fixed(), torch.enable_grad():
        if isinstance(inputs, Mapping):
            model(**inputs)
        else:
            model(*(inputs if isinstance(inputs, tuple) else (inputs,)))


@contextmanager
def _hooked_or_not(model: nn.Module) -> Generator[None]:
    """Within this context a rule puts its hooks into ``model``; if Ctrl-C ends that, none of them stays."""
    parts = list(model.modules())
    tables: list[dict[int, Any]] = [table for part in parts for table in (part._forward_hooks, part._forward_pre_hooks)]
    known = [set(table) for table in tables]
    own_call = vars(model).get("_call_impl")
    try:
        yield
    except BaseException:
        new = {key for table, before in zip(tables, known, strict=True) for key in table if key not in before}
        for part in parts:
            for table in (
                *(part._forward_hooks, part._forward_hooks_with_kwargs, part._forward_hooks_always_called),
                *(part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs),
            ):
                for key in new & table.keys():
                    del table[key]
        if own_call is None:
            vars(model).pop("_call_impl", None)
        raise


class Attachment(nn.Module):
    """A learning rule on a model: made by :func:`attach`.

    It owns the rule's state and holds the model without registering it, so it can be a submodule of whatever
    trains the model, moves with ``.to()`` and is saved by ``state_dict()``. A run that restores model, optimizer and
    attachment continues bit for bit. ``print(attachment)`` shows what the rule does to the model.

    Attributes:
        rule: The rule.
        mechanism: The mechanism, which put the hooks in and holds the feedback.
        within: The same of the layerwise rule inside the segments of a direct one, or None.
    """

    def __init__(self, rule: Rule, mechanism: Mechanism, *, within: Mechanism | None = None) -> None:
        super().__init__()
        self.rule = rule
        self.mechanism = mechanism
        self.within = within
        self._attached = True
        with _hooked_or_not(self.model):
            # Layers are joined to their inputs before a tap cuts what they give.
            for part in self.parts():
                part.install()
            mechanism.watch_error()
            keep(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        keep(self)

    @property
    def model(self) -> nn.Module:
        """The model that learns."""
        return self.mechanism.plan.model

    @property
    def taps(self) -> Mapping[str, nn.Module]:
        """The tap modules by name."""
        return self.mechanism.plan.taps

    @property
    def feedback(self) -> nn.Module:
        """The matrices that the rule draws and learns, by name; their tensors may be written into.

        - A direct rule with one matrix for all taps: ``"shared"``. With one matrix for each tap: ``"TAP:WIDTH"``, for
          example ``"blocks.0.act:512"``; ``"TAP:CHANNELSxMODES"`` with spatial modes; ``"TAP"`` where an optimizer
          steps it.
        - A layerwise rule: ``"LAYER"``, the name of the layer.
        - :class:`bpfree.PEPITA`: ``"F"``.

        Where the feedback is a callable of yours, ``feedback.project`` is that callable.
        """
        feedback: nn.Module = self.mechanism.feedback
        return feedback

    @property
    def feedbacks(self) -> Mapping[str, nn.Module]:
        """The feedback of each error by the error's name, as in ``feedbacks["value"]``."""
        further: Mapping[str, Any] = getattr(self.mechanism, "further", {})
        first = getattr(self.mechanism, "first_error", self.mechanism.plan.error_name)
        return {first: self.feedback, **{name_of(key): mechanism.feedback for key, mechanism in further.items()}}

    def targets(self, targets: Tensor | Mapping[str, Tensor]) -> None:
        """Give the targets of this step, before ``loss.backward()``: for rules that learn from them (DRTP).

        Args:
            targets: Class numbers ``(N,)``, integers, or numbers of the output's shape ``(N, c)``. With several errors
                a mapping from their names.

        Raises:
            TargetsError: They are not a tensor, or there is no error of such a name.
        """
        for given in targets.values() if isinstance(targets, Mapping) else [targets]:
            if not isinstance(given, Tensor):  # callers are not type-checked
                raise TargetsError(f"targets are of type {type(given).__name__}; a tensor is needed.")
        self.mechanism.targets(targets)

    def adjacency(self, matrix: Matrix) -> None:
        """Give the matrix that errors are spread over, for feedback with ``spread`` (:class:`bpfree.Feedback`).

        It stays until another is given, and is not part of the state.

        Args:
            matrix: S, ``(N, N)`` for N nodes: a tensor, dense or sparse, or anything that ``S @ error`` is defined for.
                Usual is the normalized adjacency D^-1/2 (A + I) D^-1/2.

        Raises:
            OptionError: The rule has no matrices to project by, or no error is to be spread.
        """
        if not isinstance(self.feedback, Projection):
            raise OptionError(f"{self.rule} projects no error by matrices of its own, so there is none to spread.")
        if not self.feedback.feedback.spread:
            raise OptionError("no error is to be spread: Feedback(spread=k) says over how many edges.")
        self.feedback.adjacency = matrix

    def mirror(self, steps: int) -> None:
        """Take ``steps`` mirror steps (:class:`bpfree.WeightMirror`), such as before training begins.

        Raises:
            OptionError: Neither the rule nor the one within it is a weight mirror, or ``steps`` is no whole number of 0
                or more.
            StateError: No forward pass has shown yet which layers there are.
        """
        if not isinstance(steps, int):  # callers are not type-checked
            raise OptionError(f"steps={steps!r}: a whole number of mirror steps, 0 or more.")
        mirrors = [part for part in self.parts() if isinstance(part, WeightMirrorMechanism)]
        if not mirrors:
            raise OptionError(f"{self.rule} has nothing to mirror: that is for bpfree.WeightMirror().")
        for part in mirrors:
            part.mirror(steps)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Within this context forward passes are plain autograd."""
        with ExitStack() as stack:
            for part in self.parts():
                stack.enter_context(part.paused())
            yield

    @contextmanager
    def fixed(self) -> Generator[None]:
        """Within this context feedback that learns stays as it is, to measure it."""
        with ExitStack() as stack:
            for part in self.parts():
                stack.enter_context(part.fixed())
            yield

    def parts(self) -> list[Mechanism]:
        """Return the mechanisms, in the order in which their hooks go in."""
        return [self.mechanism] if self.within is None else [self.within, self.mechanism]

    def detach(self) -> None:
        """Take every hook out. The model is as it was, with the weights it has learned. A second call does nothing."""
        if self._attached:
            for part in self.parts():
                part.remove()
            self._attached = False

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A tensor, so that any format that stores tensors can hold the whole state.
        destination[prefix + "rule"] = torch.tensor(list(self._fingerprint().encode()), dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.pop(prefix + "rule", None)
        if saved is None:
            raise StateError(f"the state holds no {prefix + 'rule'!r}: it is not that of an attachment.")
        of = bytes(saved.tolist()).decode()
        if of != self._fingerprint():
            raise StateError(f"the state is that of {of}; this attachment runs {self._fingerprint()}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _fingerprint(self) -> str:
        inner = "" if self.within is None else f" with {_fingerprint(self.within.rule)} within"
        return _fingerprint(self.rule) + inner

    def __repr__(self) -> str:
        plan = self.mechanism.plan
        title = f"{self.rule!s} on {type(self.model).__name__}" + (f", window {plan.window}" if plan.window > 1 else "")
        title += ", streaming" if plan.streaming else ""
        lines = [title if self._attached else f"{title}, detached"]
        for part in reversed(self.parts()):
            header, rows, remarks = part.table()
            lines += [f"within: {part.rule!s}"] if part is self.within else []
            lines += [*tabulate(header, fold(rows)), *remarks]
        size = sum(tensor.numel() * tensor.element_size() for tensor in (*self.buffers(), *self.parameters()))
        return "\n".join([*lines, f"Feedback memory: {size / 2**10:,.1f} KiB" if size else "No feedback is stored."])


def _fingerprint(rule: Rule) -> str:
    """Return the rule and its options, without the addresses that the text of a callable would hold."""
    options = {option.name: getattr(rule, option.name) for option in fields(rule)}
    plain = {name: value for name, value in options.items() if not callable(value)}
    return f"{type(rule).__name__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"
