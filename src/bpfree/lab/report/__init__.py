"""The report of a comparison: one HTML page that opens without a network, and one picture for a README."""

from bpfree.lab.report.page import write
from bpfree.lab.report.picture import picture
from bpfree.lab.report.series import ReportError

__all__ = ["ReportError", "picture", "write"]
