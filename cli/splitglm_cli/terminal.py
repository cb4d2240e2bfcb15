"""What may be written to a terminal: a model's text is data and must not move the cursor or set the title."""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO


def printable(text: str, stream: TextIO | None = None) -> str:
    """``text`` without control characters when ``stream`` (standard output) is a terminal; files get it unchanged."""
    if not (stream or sys.stdout).isatty():
        return text
    return without_controls(text)


def without_controls(text: str) -> str:
    """``text`` with every control character but line feed and tab replaced by U+FFFD."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)
