"""Violations that the search has found, each by the smallest model: none of them may come back.

By kind: what was wrong; then the law, the rule, and the model.
"""

from __future__ import annotations

from fuzz.descriptions import (
    Activation,
    Attention,
    Bend,
    Branch,
    Checkpoint,
    Dense,
    Extra,
    Force,
    Hooked,
    Model,
    Noise,
    Norm,
    Offset,
    Recurrent,
    Shared,
    State,
    Tied,
)

HIDDEN = (Dense(), Activation())
"""A layer and its non-linearity: what is tapped by default."""

Case = tuple[str, str, Model]
"""A law, a rule, and the model on which it was broken."""

FOUND: dict[str, list[Case]] = {
    "A: a second run moves counters, lists and other attributes": [
        ("outputs", "GrAPE", Model(parts=(*HIDDEN, State()))),
        ("outputs", "PEPITA", Model(parts=(*HIDDEN, State()))),
        ("outputs", "DFA, streaming", Model(parts=(*HIDDEN, State("list")))),
        ("streaming", "DFA", Model(parts=(*HIDDEN, State("counter")))),
        ("streaming", "DFA", Model(parts=(*HIDDEN, State("memory")))),
        ("streaming", "DFA", Model(parts=(State("membrane"), *HIDDEN))),
        ("streaming", "DKP", Model(parts=(*HIDDEN, State("dictionary")))),
        ("streaming", "FDFA", Model(parts=(State("logged"), *HIDDEN))),
        ("transport", "B = J, streaming", Model(parts=(State(), *HIDDEN))),
        ("detach", "LMS", Model(parts=(*HIDDEN, State("counter")))),
        ("backpropagation", "full window, GrAPE", Model(parts=(State(), *HIDDEN))),
    ],
    "A: a second run moves the model's own generators, numpy's and Python's random numbers": [
        ("outputs", "FDFA", Model(parts=(*HIDDEN, Noise("numpy")))),
        ("outputs", "GrAPE", Model(parts=(Noise("python"), *HIDDEN))),
        ("outputs", "LMS", Model(parts=(*HIDDEN, Noise("generator")))),
        ("outputs", "PEPITA", Model(parts=(*HIDDEN, Noise("numpy")))),
        ("streaming", "DFA", Model(parts=(*HIDDEN, Noise("numpy")))),
        ("streaming", "DFA, ternary", Model(parts=(*HIDDEN, Noise("python")))),
        ("streaming", "DRTP", Model(parts=(*HIDDEN, Noise("generator")))),
    ],
    "A: a second run calls the user's hooks again": [
        ("outputs", "FDFA", Model(parts=(Hooked(HIDDEN, "count"),))),
        ("streaming", "DFA", Model(parts=(Hooked(HIDDEN, "count"),))),
        ("detach", "GrAPE, streaming", Model(parts=(Hooked(HIDDEN, "count"),))),
        ("detach", "PEPITA", Model(parts=(Hooked(HIDDEN, "count"),))),
    ],
    "A: reading the weight of a parametrized layer moves its power iteration": [
        ("outputs", "FA", Model(parts=(Dense(), Dense(kind="spectral")))),
        ("detach", "WeightMirror", Model(parts=(Dense(), Dense(kind="spectral")))),
    ],
    "B: a tensor hook is called with None below the last tap": [
        ("outputs", "Shallow", Model(parts=(Dense(), Bend("hook"), Activation()))),
        ("streaming", "Shallow", Model(parts=(Dense(), Bend("hook"), Activation()))),
        ("threads", "Shallow", Model(parts=(Dense(), Bend("hook"), Activation()))),
    ],
    "B: in a checkpoint, a jvp made of a backward pass runs the part again, and its taps are not perturbed": [
        ("untaught", "LMS", Model(parts=(Activation(), Checkpoint((Dense(), Activation("spike")))))),
        ("untaught", "FDFA", Model(parts=(Activation(), Checkpoint((Dense(), Activation("spike"))), *HIDDEN))),
        ("untaught", "ForwardGradient, activations", Model(parts=(Checkpoint((Dense(), Activation("spike"))),))),
    ],
    "B: tangents are not tried against gradients where the taps' signals take much memory": [
        ("verify", "ForwardGradient, activations", Model(parts=(Activation(), Bend("contradicted")))),
        ("verify", "GrAPE", Model(parts=(Activation(), Bend("contradicted"), Activation(), *HIDDEN))),
    ],
    "B: under streaming, tangents are not tried against gradients": [
        ("verify", "GrAPE, streaming", Model(parts=(*HIDDEN, Bend("contradicted")))),
        ("verify", "GrAPE, streaming", Model(parts=(*HIDDEN, Bend("contradicted"), *HIDDEN), input="tokens")),
        ("verify", "GrAPE, streaming", Model(parts=(*HIDDEN, Branch((Dense(),), (Bend("contradicted"), Dense()))))),
    ],
    "C: a loss term kept on the module loses its graph": [
        ("outputs", "DFA", Model(parts=(*HIDDEN, Extra()))),
        ("outputs", "Shallow", Model(parts=(*HIDDEN, Extra()))),
        ("outputs", "GrAPE", Model(parts=(*HIDDEN, Extra()))),
        ("outputs", "FDFA, every second pass", Model(parts=(Extra("side_head"), *HIDDEN))),
        ("outputs", "ForwardGradient, activations", Model(parts=(*HIDDEN, Extra("router")))),
        ("untaught", "LMS, stepped by an optimizer", Model(parts=(*HIDDEN, Extra("side_head")), error_at=True)),
        ("backpropagation", "full window", Model(parts=(*HIDDEN, Extra()))),
        ("streaming", "FDFA", Model(parts=(*HIDDEN, Dense(), Extra()))),
        ("backpropagation", "full window, GrAPE", Model(parts=(Extra("side_head"), *HIDDEN))),
        ("outputs", "ForwardGradient, weights", Model(parts=(Dense(), Extra()))),
        ("outputs", "DFA, one matrix a tap", Model(parts=(Bend(), *HIDDEN, Extra()), taps=(2, 1))),
    ],
    "C: a loss term kept on the module under windows and threads: torch's 'second time' error": [
        ("backpropagation", "full window", Model(parts=(*HIDDEN, Dense(), Extra()))),
        ("backpropagation", "full window, DKP", Model(parts=(*HIDDEN, Extra("router")))),
        ("outputs", "DFA, window 2", Model(parts=(*HIDDEN, Dense(), Extra()))),
        ("outputs", "DFA, 2 threads", Model(parts=(*HIDDEN, Extra("hook")))),
        ("threads", "DFA, ternary", Model(parts=(Norm(), Extra(), Activation()))),
    ],
    "C: a second output's loss goes around the error's place": [
        ("backpropagation", "full window", Model(parts=HIDDEN, output="two", error_at=True)),
        ("backpropagation", "full window, DKP", Model(parts=(*HIDDEN, *HIDDEN), output="two", error_at=True)),
        ("backpropagation", "full window, B = W within", Model(parts=(*HIDDEN, *HIDDEN), output="two", error_at=True)),
        ("streaming", "FDFA, every second pass", Model(parts=(*HIDDEN, Norm()), output="two", error_at=True)),
        ("streaming", "DFA, FA within", Model(parts=(Dense(),), output="two", taps=(0, 5), error_at=True)),
        ("outputs", "GrAPE", Model(parts=HIDDEN, output="two")),
        ("outputs", "ForwardGradient, weights", Model(parts=HIDDEN, output="object")),
        ("outputs", "FDFA", Model(parts=HIDDEN, output="dict", taps=(5,))),
        ("accumulation", "ForwardGradient, weights", Model(parts=(Norm(), *HIDDEN), output="loss")),
        ("backpropagation", "full window", Model(parts=(Tied(),), output="two", error_at=True)),
        ("detach", "GrAPE, calibrated", Model(parts=HIDDEN, output="two")),
    ],
    "C: a loss term kept on the module gets a graph where it has none without the rule": [
        ("streaming", "DKP", Model(parts=(Shared((Extra("hook"),)),))),
        ("outputs", "DFA", Model(parts=(Shared((Extra("hook"),)),))),
        ("streaming", "DFA, ternary", Model(parts=(Extra("hook"), Extra(), *HIDDEN))),
    ],
    "C: of several outputs one is a named tap itself, or made of it alone: its loss teaches nothing": [
        ("calls", "DRTP", Model(parts=(Recurrent(), Dense(kind="own")), output="object", call="nested", taps="linear")),
        (
            "calls",
            "GrAPE, calibrated",
            Model(parts=(Recurrent(), *HIDDEN), output="dict", call="keyword", taps="linear"),
        ),
        ("outputs", "DFA", Model(parts=(*HIDDEN, *HIDDEN), output="tuple", taps="leaves")),
    ],
    "C: two errors above the same taps, under threads: torch's 'second time' error": [
        ("calls", "DFA, 2 threads", Model(parts=(Recurrent(),), output="two", call="method", taps=(0, 4))),
        ("outputs", "DFA, 2 threads", Model(parts=(*HIDDEN, *HIDDEN), output="two")),
        (
            "calls",
            "DFA, 2 threads",
            Model(parts=(Dense(kind="twice"), Activation()), input="tokens", output="two", call="nested"),
        ),
    ],
    "C: a head that is a tap itself, and is returned beside others, is taken for no error": [
        ("outputs", "DFA", Model(parts=(Dense(), Activation("prelu")), input="tokens", output="tuple", taps="linear")),
        ("untaught", "DKP", Model(parts=(Dense(), Activation("prelu")), input="tokens", output="dict", taps="linear")),
    ],
    "E: a subclass or hooked layer is taken for its plain map": [
        ("backpropagation", "B = W", Model(parts=(Dense(), Dense(kind="activated")))),
        ("backpropagation", "B = W", Model(parts=(Dense(), Dense(kind="extended")))),
        ("backpropagation", "B = W", Model(parts=(Norm(), Dense(kind="masked")))),
        ("backpropagation", "B = W", Model(parts=(Dense(), Dense(kind="hooked")))),
        ("backpropagation", "B = W", Model(parts=(Dense(), Dense(kind="prehooked")))),
        ("backpropagation", "B = W", Model(parts=(Dense(), Dense(kind="squashed")))),
        ("backpropagation", "B = W", Model(parts=(Dense(), Dense(kind="gated")))),
        ("backpropagation", "B = W", Model(parts=(Dense(), Dense(kind="complex")))),
        ("backpropagation", "B = W", Model(parts=(Dense(), Dense(kind="standardized")), input="image")),
        ("transport", "B = J, B = W within", Model(parts=(Dense(), Dense(kind="extended"), Activation()))),
    ],
    "E: complex weights have no sign": [
        ("outputs", "SignSymmetry, uniform", Model(parts=(Dense(), Dense(kind="complex")))),
        ("outputs", "SignSymmetry, batch", Model(parts=(Dense(), Dense(kind="complex")))),
    ],
    "E: complex weights crash the inspection of the first pass": [
        ("outputs", "DKP", Model(parts=(Dense(kind="complex"), Activation()))),
        ("outputs", "LMS", Model(parts=(Force(), Dense(kind="complex")))),
        ("transport", "B = J", Model(parts=(Dense(kind="complex"), *HIDDEN))),
        ("backpropagation", "full window", Model(parts=(Dense(kind="complex"), *HIDDEN))),
    ],
    "F: another way to call the model is no pass of the rule": [
        ("calls", "PEPITA", Model(parts=HIDDEN, call="method")),
        ("calls", "PEPITA", Model(parts=HIDDEN, call="forward")),
        ("calls", "WeightMirror", Model(parts=(Dense(),), call="forward")),
        ("calls", "ForwardGradient, weights", Model(parts=(Recurrent(),), call="forward")),
        ("calls", "SignSymmetry, batch", Model(parts=(Dense(), Dense()), call="forward")),
        (
            "calls",
            "SignSymmetry, uniform",
            Model(parts=(Tied(), Shared((Tied(),))), input="integers", call="method", error_at=True),
        ),
    ],
    "F: a replaced module trains by backpropagation": [
        ("replacing", "DFA", Model(parts=(*HIDDEN, *HIDDEN))),
        ("replacing", "FA", Model(parts=(Dense(), Dense()))),
        ("replacing", "KolenPollack", Model(parts=(Dense(), Dense()))),
        ("replacing", "SignSymmetry, fixed", Model(parts=(Dense(), Dense()))),
        ("replacing", "WeightMirror", Model(parts=(Recurrent(),))),
        ("replacing", "PEPITA", Model(parts=HIDDEN)),
        ("replacing", "Shallow", Model(parts=(Activation("prelu"),), output="dict", taps=(5,))),
        ("replacing", "DFA", Model(parts=HIDDEN, output="dict", taps=(5,))),
        ("replacing", "WeightMirror", Model(parts=(Dense(), Dense()), call="method")),
        ("replacing", "FA", Model(parts=(Dense(), Dense()), call="forward")),
    ],
    "H: full backward hooks on taps do not fire, or fire once a window": [
        ("outputs", "DFA", Model(parts=(Dense(), Hooked((Activation(),), "backward")))),
        ("outputs", "DKP, streaming", Model(parts=(*HIDDEN, Hooked((), "backward")))),
        ("transport", "B = J", Model(parts=(Hooked(HIDDEN, "backward"),))),
        ("transport", "B = J", Model(parts=(Hooked((Activation(),), "backward_scaled"),), input="integers")),
        ("backpropagation", "full window", Model(parts=(*HIDDEN, Hooked((), "backward")))),
        ("streaming", "LMS", Model(parts=(Hooked((Tied("parameter"),), "backward"),))),
    ],
    "H: full backward hooks below Shallow's cut are called, without a gradient, under threads": [
        ("threads", "Shallow", Model(parts=(Hooked((Attention(),), "backward"), Recurrent()))),
    ],
    "H: backward hooks hear of passes that the library makes, or of a further loss apart": [
        ("verify", "GrAPE, streaming", Model(parts=(Hooked((), "backward"),), taps="leaves")),
        ("verify", "LMS, stepped by an optimizer", Model(parts=(Activation(), Hooked((), "backward")))),
        (
            "outputs",
            "FDFA, every second pass",
            Model(parts=(*HIDDEN, Branch((Hooked((State(),), "backward"),), HIDDEN)), output="two", error_at=True),
        ),
    ],
    "H: full backward hooks on a tap that a further loss uses are called twice, and change gradients twice": [
        ("outputs", "DFA", Model(parts=(Hooked((Dense(),), "backward"),), output="two", taps=(1,), error_at=True)),
        *(
            (
                law,
                rule,
                Model(
                    parts=(Dense(), Activation(), Extra(), Hooked((), "backward")),
                    output="dict",
                    taps=(3, 3),
                    error_at=True,
                ),
            )
            for law, rule in (("outputs", "DFA, one matrix a tap"), ("detach", "GrAPE, calibrated"))
        ),
    ],
    "H: full backward hooks on a tap right behind another tap are not called, and not named": [
        *(
            ("outputs", rule, Model(parts=(*HIDDEN, Hooked((Activation(),), "backward")), taps=(1, 2)))
            for rule in ("DFA", "LMS, stepped by an optimizer", "DKP, streaming")
        ),
        ("outputs", "GrAPE", Model(parts=(*HIDDEN, Hooked((), "backward")), output="two", taps=(1, 2), error_at=True)),
    ],
    "H: what hooks on gradients move is put back behind a stream's second run": [
        ("outputs", "DKP, streaming", Model(parts=(Hooked((Dense(),), "backward"),), taps=(0, 0))),
        ("outputs", "DFA, streaming", Model(parts=(Hooked((Dense(),), "backward"),), taps=(0,))),
        ("outputs", "GrAPE, streaming", Model(parts=(Hooked((Dense(),), "backward"), Activation()))),
    ],
    "H: a full backward hook that changes gradients does so in plain training and not in a full window": [
        (
            "backpropagation",
            "full window, Shallow",
            Model(parts=(Offset(), *HIDDEN, Hooked((), "backward_scaled")), taps=(3,)),
        ),
        (
            "backpropagation",
            "full window, B = W within",
            Model(parts=(*HIDDEN, *HIDDEN, Hooked((), "backward_scaled")), taps=(4,)),
        ),
    ],
    "I: crashes where a model differentiates in its own forward pass": [
        ("outputs", "DFA", Model(parts=(Force(),))),
        ("outputs", "DFA, streaming", Model(parts=(Force(),))),
        ("outputs", "Shallow", Model(parts=(Force(),))),
        ("backpropagation", "full window", Model(parts=(Force(),))),
        ("transport", "B = J, window 2", Model(parts=(Force(),))),
        ("detach", "LMS", Model(parts=(Checkpoint((Force(),)),))),
        ("copies", "DRTP", Model(parts=(Checkpoint((Force(),)),))),
        ("outputs", "FDFA", Model(parts=(Checkpoint((Force(),)), Dense(3), Activation()))),
        (
            "calls",
            "ForwardGradient, weights",
            Model(parts=(Force(), Checkpoint((Tied(),))), output="two", call="nested", error_at=True),
        ),
    ],
    "I: a tap's output that is a view, changed in place behind it: the interpreter died": [
        (
            "outputs",
            "DFA, one matrix a tap",
            Model(
                parts=(Dense(), Activation("relu", "in_place"), Dense(kind="activated")),
                input="tokens",
                taps="linear",
                error_at=True,
            ),
        ),
    ],
    "I: copies behind a pass": [
        ("copies", "DFA", Model(parts=HIDDEN)),
        ("copies", "DFA, window 2", Model(parts=HIDDEN)),
        ("copies", "DRTP, streaming", Model(parts=HIDDEN)),
        ("copies", "DRTP", Model(parts=HIDDEN, output="object", error_at=True)),
        (
            "copies",
            "SignSymmetry, uniform",
            Model(parts=(Tied(), Shared((Tied(),))), input="integers", call="method", error_at=True),
        ),
        ("copies", "WeightMirror", Model(parts=(Dense(), Checkpoint((Dense(),))))),
        ("copies", "SignSymmetry, fixed", Model(parts=(Checkpoint((Tied("parameter"),)),))),
    ],
    "I: copies behind a pass that no tap has observed: the random state of its beginning was kept": [
        ("copies", "GrAPE, calibrated", Model(parts=(Activation(),), output="tuple")),
        ("copies", "FDFA, every second pass", Model(parts=(Dense(kind="activated"), Activation()), output="tuple")),
        ("pickles", "ForwardGradient, activations", Model(parts=(Activation(),), output="tuple")),
    ],
    "I: verify finds second runs wrong where the model runs once": [
        ("verify", "DFA", Model(parts=(Activation("elu", "in_place"),))),
        ("verify", "WeightMirror", Model(parts=(Activation("elu", "in_place"),))),
        ("verify", "SignSymmetry, batch", Model(parts=(Shared((Activation("silu", "in_place"),), times=3), Dense()))),
    ],
    "I: a checkpoint whose parts are joined, or whose tap ends the model: torch's CheckpointError": [
        ("untaught", "DFA, FA within", Model(parts=(Activation(), Checkpoint((Dense(),))))),
        ("replacing", "DFA, FA within", Model(parts=(Checkpoint(HIDDEN),), call="outside")),
        ("transport", "B = J, B = W within", Model(parts=(Activation(), Checkpoint((Tied(),))))),
        ("backpropagation", "full window, B = W within", Model(parts=(Checkpoint((Shared((Activation(),)),)),))),
        ("calls", "DRTP", Model(parts=(Checkpoint((Activation(), Activation())),), call="forward")),
    ],
    "I: a stream's segment learns within a checkpoint, and graphs are made on the way back: torch's CheckpointError": [
        (
            "streaming",
            "DFA, FA within",
            Model(parts=(Recurrent("cells"), Checkpoint((Dense(kind="masked"), Activation())))),
        ),
    ],
    "I: a checkpoint that holds a tap or a served subclass: torch's CheckpointError": [
        (
            "transport",
            "B = J, 2 threads",
            Model(parts=(Checkpoint((Shared(HIDDEN),)),), output="dict", error_at=True),
        ),
        ("pickles", "SignSymmetry, uniform", Model(parts=(Checkpoint((Dense(kind="masked"),)),), input="integers")),
        ("untaught", "GrAPE", Model(parts=(Checkpoint((Shared(HIDDEN),)),), output="dict", error_at=True)),
        ("streaming", "LMS, stepped by an optimizer", Model(parts=(Checkpoint((Tied(),)),))),
        ("transport", "B = J, streaming", Model(parts=(Checkpoint((Tied(),)),))),
    ],
    "I: an exception above the error: an estimating pass ran behind it, and torch's error hid it": [
        ("outputs", "GrAPE, streaming", Model(parts=(Dense(),), output="two", taps="linear", error_at=True)),
        ("calls", "FDFA", Model(parts=(Dense(),), output="two", call="reversed", taps="linear", error_at=True)),
    ],
    "I: under PEPITA, a layer behind which no activation changes is not named": [
        ("untaught", "PEPITA", Model(parts=(Activation(), Dense(), Activation("spike")))),
        ("untaught", "PEPITA", Model(parts=(Dense(), Activation("spike", form="own"), *HIDDEN))),
    ],
    "the law's own: what no feedback has reached yet, for dropout has left nothing, was taken for untaught": [
        (
            "untaught",
            "FDFA, every second pass",
            Model(parts=(Dense(), Shared((Shared((Noise(),)),), times=3), Noise()), taps=(0,)),
        ),
    ],
    "the law's own: signals at taps that return several tensors were not found": [
        ("transport", "B = J", Model(parts=(Recurrent("lstm"),), input="tokens", taps="leaves")),
        ("transport", "B = J, streaming", Model(parts=(Recurrent("lstm"),), input="tokens", taps="leaves")),
    ],
    "G: under streaming, time first with as many steps as samples is not seen": [
        ("verify", "DRTP, streaming", Model(parts=(Activation(),), input="time", samples=3)),
        ("verify", "DKP, streaming", Model(parts=(Recurrent(),), input="time", samples=4, steps=4, taps=(1, 1))),
    ],
    "H: under streaming, a tap that hands on an argument as it is gives the argument no gradient": [
        ("streaming", "DFA", Model(parts=(State("membrane"),), call="outside", taps="leaves")),
        ("streaming", "DKP", Model(parts=(State("membrane"), Activation()), call="outside", taps="leaves")),
    ],
}
