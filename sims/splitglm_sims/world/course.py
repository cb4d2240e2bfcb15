"""A quantity that changes over time in steps: a device's slowdown, a cloud's queue."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from splitglm_core.errors import InputError


@dataclass(frozen=True, slots=True)
class Course:
    """``values[i]`` holds from ``starts_s[i]`` on; the last one for ever.

    Attributes:
        starts_s: the first is 0, strictly increasing.
        values: finite, not negative.
    """

    starts_s: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.starts_s or len(self.starts_s) != len(self.values) or self.starts_s[0] != 0.0:
            raise InputError("a course needs as many values as starts, the first start being 0")
        if any(not a < b < math.inf for a, b in zip(self.starts_s, self.starts_s[1:], strict=False)):
            raise InputError("the starts of a course increase strictly")
        if not all(0.0 <= value < math.inf for value in self.values):
            raise InputError("the values of a course are finite and not negative")

    def at(self, time_s: float) -> float:
        """The value at ``time_s`` >= 0."""
        return self.values[bisect_right(self.starts_s, time_s) - 1]

    @classmethod
    def constant(cls, value: float) -> Course:
        return cls((0.0,), (value,))
