"""The lab's exceptions; every message names the file or option and says what to do."""

from __future__ import annotations

from bpfree.errors import BpfreeError


class DataError(BpfreeError, ValueError):
    """A data file is missing, truncated or altered, or cannot be had."""


class SettingsError(BpfreeError, ValueError):
    """A setting has a name or a value that means nothing."""


class TableSizeError(SettingsError):
    """A model's tables do not fit into memory; nothing of them has been allocated."""


class RunError(BpfreeError, RuntimeError):
    """A run cannot be started or continued from what lies in its folder."""


class DamageError(BpfreeError, ValueError):
    """A file of results or settings is not as it was written."""


class TrustError(BpfreeError, RuntimeError):
    """A file that nobody has vouched for names code to run."""


class WriteError(BpfreeError, OSError):
    """A result could not be written, for instance because the disk is full."""


class LedgerError(BpfreeError, RuntimeError):
    """The database with the finished runs cannot be opened, or does not answer."""
