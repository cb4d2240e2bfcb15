"""What the engine needs from whatever computes layers: ONNX Runtime or torch.

A batch is ragged: rows of several sessions, one after the other, of any number each; what belongs to whom is said by
``Rider``. Hidden states stay in the runtime's own arrays from boarding to alighting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape

Hidden = NDArray[np.float32]
Rows = Any
"""The runtime's own array (n, hidden); it can be sliced: ``rows[a:b]``."""


class Cache(Protocol):
    """Keys and values of one session in a range of layers. Each layer counts its own positions."""

    @property
    def layers(self) -> LayerRange: ...

    @property
    def capacity(self) -> int: ...

    @property
    def length(self) -> int:
        """Positions that every layer holds."""

    @property
    def committed(self) -> int:
        """Positions that memory is held for at this moment, in each layer; never less than ``length``."""

    def committed_for(self, positions: int) -> int:
        """At least what ``committed`` becomes when the cache grows to ``positions``."""

    def extend(self, pages: Sequence[Sequence[int]]) -> None:
        """Take page ids into use, for each layer in order those that follow its last.

        A cache whose memory is paged by the operating system has no use for the ids.
        """

    def truncate(self, length: int) -> None:
        """Forget positions from ``length`` on, in every layer; their memory is never read before it is overwritten."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Rider:
    """One session's part of a batch: ``rows`` rows at positions ``[base, base + rows)`` of its cache."""

    cache: Cache
    rows: int
    base: int


class Runner(Protocol):
    """Runs any layers it has loaded. Called from one thread at a time."""

    @property
    def shape(self) -> ModelShape: ...

    @property
    def name(self) -> str:
        """Runtime and device, for logs and ``splitglm doctor``: ``onnxruntime CPU`` or ``torch cuda:0``."""

    def reserve(self, pages: int) -> None:
        """Make room for a pool of so many pages; called while no cache has any, and again to change its size."""

    def new_cache(self, layers: LayerRange, capacity: int) -> Cache: ...

    def embed(self, ids: NDArray[np.int64]) -> Rows:
        """Token ids (n,), of one session or several, to their rows.

        Raises:
            InputError: an id outside the vocabulary.
        """

    def board(self, hidden: Hidden) -> Rows:
        """Rows that came from outside, float32 (n, hidden)."""

    def join(self, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after the other."""

    def forward(self, rows: Rows, riders: Sequence[Rider], layers: LayerRange) -> Rows:
        """Run all rows through ``layers`` and append every rider's positions to its cache in these layers.

        A row's result does not depend on its batch mates beyond rounding. A call that raises leaves every length in
        these layers as it was.
        """

    def alight(self, rows: Rows) -> Hidden:
        """Rows as float32 (n, hidden) that belong to the caller."""

    def logits(self, rows: Rows) -> NDArray[np.float32]:
        """Final norm and LM head: (n, hidden) to (n, vocab)."""
