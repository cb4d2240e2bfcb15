"""What one run of the command knows beside its options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Invocation:
    """Travels as the context object of the command line.

    Attributes:
        debug: show tracebacks.
    """

    debug: bool = False
