"""Works for the carousel's tests."""

from __future__ import annotations

import math

from splitglm_cloud.engine.work import Work
from splitglm_core.criticality import Criticality
from splitglm_core.ranges import LayerRange

LAYERS = 12


def work(
    session: int,
    start: int = 0,
    stop: int = LAYERS,
    *,
    rows: int = 1,
    decode: bool = True,
    tenant: str = "",
    weight: float = 1.0,
    criticality: Criticality = Criticality.CRITICAL,
    deadline_s: float = math.inf,
) -> Work:
    return Work(
        session=session,
        seq=1,
        layers=LayerRange(start, stop),
        base=0,
        rows=rows,
        decode=decode,
        tenant=tenant,
        weight=weight,
        criticality=criticality,
        deadline_s=deadline_s,
    )


def prompt(session: int, start: int = 0, stop: int = LAYERS, *, rows: int, **more: object) -> Work:
    return work(session, start, stop, rows=rows, decode=False, **more)  # type: ignore[arg-type]
