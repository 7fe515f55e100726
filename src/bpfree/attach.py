"""attach(): put a learning rule into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.attachment import Attachment
from bpfree.checks import (
    check_alternate,
    check_attachable,
    check_options,
    check_sample_axes,
    check_within,
    error_modules,
)
from bpfree.mechanisms.base import Rule
from bpfree.mechanisms.direct.alternation import AlternateOrder
from bpfree.mechanisms.layerwise.rule import LayerwiseRule
from bpfree.plan import Plan, SampleAxes
from bpfree.registry import make_room
from bpfree.rerun.snapshot import preserved
from bpfree.suggest import suggested_blocks
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
    alternate: int = 1,
    alternate_order: AlternateOrder = "cyclic",
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
        alternate: For direct rules: how many taps deep the segments are. With p = ``alternate``, step t cuts only those
            taps whose index i, in forward order, has (i + t) mod p = 0, and sends them their signals. The layers below
            the other taps learn through these, from the next tap above that is cut, or from the error. Feedback learns
            at every tap, as before. 1 is the plain rule; with p above the number of taps some steps are
            backpropagation. The work of a step lies below backpropagation's. A step is what ends where an optimizer has
            stepped: its micro-batches, and the passes of its closure, cut the same taps. As long as none has stepped,
            a step ends where weights have been changed by hand, but in compiled code. A model that torch compiles has p
            graphs.
        alternate_order: The order of these steps: ``"cyclic"``, t = 0, 1, 2, ..., or ``"random"``, t drawn anew for
            each step, where cyclic steps could fall in with an order of the data.
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
            passes. A model that returns one tensor and keeps none on itself learns the same where the error is taken at
            one place; of several places each sends its error to every tap that ran before it, also to those whose
            output it does not depend on.
        example_inputs: A tensor, or the arguments of one forward pass (a tuple, or a mapping of keyword arguments). It
            is run at once to find the shapes. Without it the first forward pass finds them; the numbers drawn are the
            same.

    Returns:
        The attachment, an ``nn.Module`` with the rule's state and a context manager that detaches.

    Raises:
        OptionError: ``rule`` or its feedback, ``seed``, ``batch_dims``, ``sample_axes``, ``window``, ``alternate``,
            ``within``, ``streaming`` or ``threads`` means nothing, or two of them do not go together.
        TapSelectionError: ``taps`` matches nothing, or is None and the model has no non-linearity module.
        ErrorPlacementError: There is no module ``error_at``. In a forward pass: it is not reached, reached twice,
            before every tap, or before one that ``taps`` names; its output is not one floating point tensor, or not
            what the rule needs there; nothing that learns lies between it and the last tap.
        TapOutputError: In a forward pass: a tap's output is not one floating point tensor.
        TapShapeError: In a forward pass: a tap does not share the error's samples, or sizes leave open which axes are
            which.
        FeedbackSizeError: In a forward pass: the matrices would be larger than ``Feedback(max_bytes=)``.
        StreamingError: In a forward pass: a path leads around a cut. In a backward pass: a loss goes around
            ``error_at``, where no graph is stored.
        SecondRunError: In a forward pass or its backward pass: the model runs again, and an argument or a weight is not
            what it was; or a part is checkpointed with ``use_reentrant=True``.
        SecondDerivativeError: In a backward pass: gradients of gradients are asked for.
        ForwardDerivativeError: In a forward pass: :class:`bpfree.ForwardGradient` meets a layer without a forward-mode
            derivative.
        UnsupportedLayerError: No layer of the model can be served by the rule.
        AlreadyAttachedError: ``model``, a part of it, or a model that shares layers or taps with it has a rule already.
        AlreadyShardedError: ``fully_shard`` has it already; attach first.
    """
    check_options(rule, window, streaming, threads)
    check_alternate(rule, alternate, alternate_order, window)
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
        alternate=alternate,
        alternate_order=alternate_order,
        streaming=streaming,
        threads=threads,
        placed=error_at is not None,
        verify=verify,
        tensor_keys=tensor_keys(taps, chosen, model),
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
