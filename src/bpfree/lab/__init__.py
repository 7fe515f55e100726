"""The lab: data, models, runs and reports with which learning rules are compared.

``bpfree compare`` and ``bpfree train`` are its two main commands; the library never imports it. Needs the extra
``bpfree[lab]``.
"""
