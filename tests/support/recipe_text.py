"""The text of a small recipe."""

from __future__ import annotations

RECIPE = "title: Made up\nbase: {{data: digits, epochs: 1, {base}}}\nrows: {{a: {{}}}}\ncolumns: {{accuracy: {{}}}}\n"
