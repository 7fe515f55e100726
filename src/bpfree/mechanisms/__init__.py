"""The mechanisms: they put a rule's hooks into a model.

One step of a direct rule, hook by hook:

1. ``model(x)`` begins. ``DirectMechanism._begin_pass`` looks at a new kind of pass first (``direct/first_look.py``: is
   the rule exact there?), then chooses how this pass keeps what its segments need (``direct/choose_pass.py``).
2. At every tap ``cut_at_tap`` takes the output h with the graph of its segment, and hands on ``h.detach()``.
3. Where the error is taken, ``_take_errors`` gives the output a graph of its own (``direct/connect.py``): one function,
   whose inputs are the taps' outputs (``SignalsFromError`` in ``autograd.py``).
4. ``model(x)`` ends in ``_end_pass``. Rules that learn from forward passes run the model once more with tangents
   (``learned/observing.py``).
5. ``loss.backward()`` brings the error e to ``SignalsFromError``. ``RuleSignals`` (``direct/rule_signals.py``) lets
   learned feedback take its step (``learned/``), and asks the rule for its signals, d_l = e B_l.
6. Autograd sends every signal into its segment, as it would have sent backpropagation's.

The rooms, by family of rules:

``base.py``, ``autograd.py``   what all mechanisms are; the autograd functions
``direct/``                    signals go straight to every tap: DFA, DRTP, Shallow
``learned/``                   direct rules whose feedback learns: GrAPE, FDFA, LMS, DKP
``layerwise/``                 other weights on the way back: FA, sign symmetry, Kolen-Pollack, weight mirror
``forward_only/``              no backward pass: forward gradients, PEPITA
"""
