"""Common batches of many sessions' rows. One that fails is run again one by one: who is at fault fails alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitglm_cloud.engine.runner import Rider, Rows, Runner
from splitglm_cloud.engine.slots import Run, Slot
from splitglm_core.ranges import LayerRange
from splitglm_wire import codec
from splitglm_wire.frames import Reply

Aboard = tuple[Slot, Run]


def embed(runner: Runner, boarding: Sequence[Aboard]) -> list[tuple[Slot, Exception]]:
    """Turn everybody's ids (``run.rows``) into rows; returns those for whom it failed."""

    def once(some: Sequence[Aboard]) -> None:
        _deal(runner.embed(np.concatenate([run.rows for _, run in some])), some)

    return [(slot, error) for slot, error in _each(once, boarding) if error is not None]


def ride(runner: Runner, riding: Sequence[Aboard], layers: LayerRange) -> list[tuple[Slot, Exception]]:
    """Run everybody's rows through ``layers``; returns those for whom it failed."""

    def once(some: Sequence[Aboard]) -> None:
        riders = [Rider(slot.cache, run.part, run.base) for slot, run in some]
        _deal(runner.forward(_join(runner, [run.rows for _, run in some]), riders, layers), some)

    return [(slot, error) for slot, error in _each(once, riding) if error is not None]


def head(runner: Runner, alighted: Sequence[Aboard]) -> list[tuple[Slot, NDArray[np.float32] | Exception]]:
    """Logits of everybody's last row, or why there are none."""
    logits: dict[int, NDArray[np.float32]] = {}

    def once(some: Sequence[Aboard]) -> None:
        rows = runner.logits(_join(runner, [run.rows[-1:] for _, run in some]))
        logits.update((slot.key, row) for (slot, _), row in zip(some, rows, strict=True))

    return [(slot, error or logits[slot.key]) for slot, error in _each(once, alighted)]


def answer(runner: Runner, slot: Slot, run: Run) -> tuple[int, bytes]:
    """How many rows a finished step answers with, and these rows in wire form."""
    if run.step.reply is Reply.ACK:
        return 0, b""
    last = run.step.reply is Reply.LAST_HIDDEN
    rows = runner.alight(run.rows[-1:]) if last else np.concatenate(run.outputs)
    return len(rows), codec.encode(rows, slot.config.plan.codec, base=slot.cache.length - len(rows))


def _each(once: Callable[[Sequence[Aboard]], None], everybody: Sequence[Aboard]) -> list[tuple[Slot, Exception | None]]:
    if not everybody:
        return []
    try:
        once(everybody)
    except Exception as error:
        if len(everybody) == 1:
            return [(everybody[0][0], error)]
        return [result for one in everybody for result in _each(once, [one])]
    return [(slot, None) for slot, _ in everybody]


def _join(runner: Runner, parts: Sequence[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else runner.join(parts)


def _deal(rows: Any, everybody: Sequence[Aboard]) -> None:
    """Give every run its rows of a batch."""
    start = 0
    for _, run in everybody:
        run.rows = rows[start : start + run.part]
        start += run.part
