"""Text of any kind as sequences of tokens.

A part of a text (``parts``: a file, or a split of a data set) is read as a stream of lines (``reading``). A tokenizer
makes tokens of them (``vocabulary``), which lie in a file of the cache (``cache``, ``token_file``) and are read a batch
at a time (``sequences``).
"""

from bpfree.lab.data.text.loading import NOT_COUNTED, TOKENS, Text, checksums, load_text
from bpfree.lab.data.text.sequences import Sequences
from bpfree.lab.data.text.settings import MeasuredOn, Order, TextSettings
from bpfree.lab.data.text.vocabulary import Vocabulary

__all__ = [
    "NOT_COUNTED",
    "TOKENS",
    "MeasuredOn",
    "Order",
    "Sequences",
    "Text",
    "TextSettings",
    "Vocabulary",
    "checksums",
    "load_text",
]
