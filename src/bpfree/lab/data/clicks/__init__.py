"""Logs of clicks as rows of identifiers.

A schema (``schema``, ``schema_file``) says what the columns of a log are. Its files (``sources``) are cut into pieces
of whole rows (``text_rows``, ``reading``), each encoded by itself (``short_columns``, ``encoding``, ``piece_file``,
``pieces``). Their rows become the parts train, validation and test (``parts``), vocabularies are learned from the
first one (``vocabulary``), and each column is written as identifiers (``columns``) into a folder of the cache
(``cache``, ``caching``), from which training reads batches (``rows``).
"""

from bpfree.lab.data.clicks.loading import LOGS, NAMED, Clicks, checksums, load_clicks
from bpfree.lab.data.clicks.rows import Rows, ShuffledBlocks
from bpfree.lab.data.clicks.schema import Schema
from bpfree.lab.data.clicks.schema_file import read_schema
from bpfree.lab.data.clicks.settings import ClickSettings

__all__ = [
    "LOGS",
    "NAMED",
    "ClickSettings",
    "Clicks",
    "Rows",
    "Schema",
    "ShuffledBlocks",
    "checksums",
    "load_clicks",
    "read_schema",
]
