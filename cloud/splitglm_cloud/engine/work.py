"""What the scheduler moves: work of sessions through layers. Values only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from splitglm_core.criticality import Criticality
from splitglm_core.ranges import LayerRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Rows ``[base, base + rows)`` of ``session``: board at ``layers.start``, alight at ``layers.stop``.

    Attributes:
        decode: somebody waits for the token of this one row (or these few drafted rows).
        deadline_s: monotonic; work that has not boarded by then is not computed.
    """

    session: int
    seq: int
    layers: LayerRange
    base: int
    rows: int
    decode: bool
    tenant: str = ""
    weight: float = 1.0
    criticality: Criticality = Criticality.CRITICAL
    deadline_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Segment:
    """One batch: all rows of ``riders`` through ``layers``, which every rider needs whole.

    Attributes:
        riders: in a stable order; the rows of the batch are theirs, one after the other.
    """

    layers: LayerRange
    riders: tuple[Work, ...]

    @property
    def rows(self) -> int:
        return sum(work.rows for work in self.riders)
