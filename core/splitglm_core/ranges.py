"""Half-open ranges of decoder layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from splitglm_core.errors import InputError


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Decoder layers ``[start, stop)``. Empty when ``start == stop``."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise InputError(f"layer range [{self.start}, {self.stop}) is not half-open with 0 <= start <= stop")

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, int) and self.start <= layer < self.stop

    def covers(self, other: LayerRange) -> bool:
        """True when every layer of ``other`` is in this range (an empty range is covered by any)."""
        return len(other) == 0 or (self.start <= other.start and other.stop <= self.stop)

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"
