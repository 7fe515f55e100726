"""Feedback matrices: how they are drawn, shared, scaled and stored, and the signals that they make of errors."""

from bpfree.feedback.options import Feedback as Feedback
