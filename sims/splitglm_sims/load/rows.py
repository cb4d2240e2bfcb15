"""Hidden states for a client without a model: encoded once, sent many times.

A position's bytes depend on its own row only (position 0 of int8 apart), so a payload is cut out of encoded rows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError
from splitglm_core.plan import Codec
from splitglm_wire import codec
from splitglm_wire.limits import MAX_HIDDEN

RANDOM_ROWS: Final = 256


class RowBank:
    """Encoded rows of one model, for every codec that is asked for.

    Args:
        rows: float32 (n, hidden), recorded or random; position ``i`` is given row ``i % n``.
    """

    def __init__(self, rows: NDArray[np.float32]) -> None:
        if rows.ndim != 2 or not len(rows) or not 0 < rows.shape[1] <= MAX_HIDDEN:
            raise InputError("recorded hidden states are a float32 array (rows, hidden)")
        self._rows = np.ascontiguousarray(rows, np.float32)
        self._encoded: dict[Codec, tuple[bytes, bytes]] = {}

    @classmethod
    def random(cls, hidden: int, *, seed: int, rows: int = RANDOM_ROWS) -> RowBank:
        """Rows of unit variance."""
        return cls(np.random.default_rng([seed, hidden]).standard_normal((rows, hidden), np.float32))

    @property
    def hidden(self) -> int:
        return int(self._rows.shape[1])

    def payload(self, kind: Codec, base: int, rows: int) -> bytes:
        """The bytes of positions ``[base, base + rows)``."""
        first, cycle = self._bytes(kind)
        size = codec.row_bytes(kind, self.hidden)
        count = len(self._rows)
        parts = [first] if base == 0 and rows else []
        at, end = max(base, 1) if rows else base, base + rows
        while at < end:
            start = at % count
            stop = min(count, start + end - at)
            parts.append(cycle[start * size : stop * size])
            at += stop - start
        return b"".join(parts)

    def prepare(self, kind: Codec) -> None:
        """Encode now what would be encoded on first use."""
        self._bytes(kind)

    def _bytes(self, kind: Codec) -> tuple[bytes, bytes]:
        """Position 0, and every row as an ordinary position."""
        found = self._encoded.get(kind)
        if found is None:
            found = codec.encode(self._rows[:1], kind, base=0), codec.encode(self._rows, kind, base=1)
            self._encoded[kind] = found
        return found


def prompt_ids(index: int, rows: int, vocab: int) -> list[int]:
    """Token ids of session ``index``: as many as asked for, the same every time, never one of the first few."""
    low = min(16, vocab - 1)
    return np.random.default_rng([index, 7]).integers(low, vocab, rows).tolist()  # type: ignore[no-any-return]
