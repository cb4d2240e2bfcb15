"""A step of a device in a simulated shared cloud, from its arrival to its answer"""

from __future__ import annotations

import math
from dataclasses import dataclass

from splitglm_cloud.engine.slots import DECODE_ROWS
from splitglm_core.ranges import LayerRange
from splitglm_sims.world.draws import Draws
from splitglm_sims.world.port import Leg, Step


@dataclass(slots=True, eq=False)
class Order:
    """A step in the cloud.

    Attributes:
        done: rows that have passed every layer.
        tokens: of a stream, so far.
        drafted: of the round of a stream that is under way.
        boarded_s: when the part that rides boarded; NaN while it waits.
    """

    session: int
    step: Step
    leg: Leg
    layers: LayerRange
    draws: Draws
    offered_s: float = 0.0
    done: int = 0
    tokens: int = 0
    drafted: int = 0
    boarded_s: float = math.nan
    queue_s: float = 0.0
    sweep_s: float = 0.0
    compute_s: float = 0.0

    @property
    def decode(self) -> bool:
        return self.tokens > 0 or (self.step.rows <= DECODE_ROWS and self.step.down_bytes > 0)

    @property
    def context(self) -> int:
        stream = self.step.stream
        if stream is not None and self.tokens:
            return stream.prompt_tokens + self.tokens - 1
        return self.step.context + self.done

    @property
    def head_rows(self) -> int:
        return 1 + self.drafted if self.tokens else self.step.head_rows

    @property
    def drafting_s(self) -> float:
        """Of a drafter in the cloud, for the round that is under way."""
        stream = self.step.stream
        return self.drafted * stream.drafter.s_per_token if stream is not None and stream.drafter is not None else 0.0
