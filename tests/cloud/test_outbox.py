"""Outboxes: what is not read is bounded, for one stream and for all, and hurts nobody who reads."""

from __future__ import annotations

import pytest

from splitglm_cloud.gateway import outbox as module
from splitglm_cloud.gateway.outbox import Outbox, OutboxBudget


async def test_frames_come_out_in_order_and_then_the_end() -> None:
    outbox = Outbox(OutboxBudget(1000))
    outbox.put(b"a", True)
    outbox.put(b"bc", False)
    assert outbox.bytes == 3
    outbox.finish()
    assert [await outbox.get() for _ in range(3)] == [(b"a", True), (b"bc", False), None]
    assert outbox.bytes == 0 and not outbox.overflow.is_set()


@pytest.mark.parametrize(("name", "bound"), [("OUTBOX_BYTES", 10), ("OUTBOX_FRAMES", 5)])
async def test_one_outbox_beyond_its_bound_is_dropped_whole(
    name: str, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, bound)
    budget = OutboxBudget(1000)
    outbox = Outbox(budget)
    for _ in range(5):
        outbox.put(b"ab", False)
    assert outbox.bytes == 10 and not outbox.overflow.is_set()
    outbox.put(b"ab", False)
    assert outbox.overflow.is_set() and outbox.bytes == budget.used_bytes == 0
    outbox.put(b"ab", False)
    assert outbox.bytes == 0


async def test_beyond_the_common_budget_the_fullest_goes_not_the_one_that_asks() -> None:
    budget = OutboxBudget(100)
    hoarder, other, reader = (Outbox(budget) for _ in range(3))
    hoarder.put(bytes(60), False)
    other.put(bytes(30), False)
    reader.put(bytes(10), False)
    assert budget.used_bytes == 100
    reader.put(bytes(1), False)
    assert [outbox.overflow.is_set() for outbox in (hoarder, other, reader)] == [True, False, False]
    assert budget.used_bytes == 41
    other.put(bytes(59), False)
    assert not other.overflow.is_set()


async def test_a_closed_outbox_holds_no_part_of_the_budget() -> None:
    budget = OutboxBudget(100)
    for _ in range(10):
        outbox = Outbox(budget)
        outbox.put(bytes(90), False)
        outbox.close()
        outbox.close()
    assert budget.used_bytes == 0 and not budget.outboxes
