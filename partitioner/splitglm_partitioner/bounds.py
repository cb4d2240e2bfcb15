"""Range checks for numbers that arrive from files, peers and callers: one wording for every refusal."""

from __future__ import annotations

import math

from splitglm_core.errors import InputError

MAX_LAYERS = 4096
MAX_TOKENS = 1 << 24
MAX_BYTES = 1 << 50
MAX_SECONDS = 1e6
MAX_BYTES_PER_S = 1e12


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Raise InputError unless ``value`` is a finite number in ``[low, high]``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number")
    if not low <= value <= high:
        raise InputError(f"{name} = {value:g} is outside [{low:g}, {high:g}]")


def check_count(name: str, value: int, low: int, high: int) -> None:
    """Raise InputError unless ``value`` is a whole number in ``[low, high]``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be a whole number")
    if not low <= value <= high:
        raise InputError(f"{name} = {value} is outside [{low}, {high}]")


def check_seconds(name: str, value: float) -> None:
    """Raise InputError unless ``value`` is a duration in ``[0, MAX_SECONDS]``."""
    check_number(name, value, 0.0, MAX_SECONDS)
