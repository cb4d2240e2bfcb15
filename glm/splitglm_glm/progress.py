"""How long work on model files tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes done, bytes in all or 0 when unknown)."""


def silent(stage: str, done_bytes: int, total_bytes: int) -> None:
    """A ``Progress`` that tells nobody."""
