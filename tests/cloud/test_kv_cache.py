"""The KV ledger: it never promises more than the budget and never forgets what it promised."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from splitglm_cloud.engine.kv_cache import PAGE_POSITIONS, KvLedger
from splitglm_core.errors import InternalError

SESSIONS = st.integers(0, 5)
LAYERS = st.integers(0, 6)
POSITIONS = st.integers(0, 6 * PAGE_POSITIONS)
BUDGET_PAGES = 40
LAYER_BYTES = 24


def pages(layers: int, positions: int) -> int:
    return layers * ((positions + PAGE_POSITIONS - 1) // PAGE_POSITIONS)


class Ledger(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        page = PAGE_POSITIONS * LAYER_BYTES
        self.ledger = KvLedger(budget_bytes=BUDGET_PAGES * page + page // 2, position_layer_bytes=LAYER_BYTES)
        self.held: dict[int, int] = {}

    @rule(session=SESSIONS, layers=LAYERS, positions=POSITIONS)
    def grow(self, session: int, layers: int, positions: int) -> None:
        wanted = max(pages(layers, positions), self.held.get(session, 0))
        fits = sum(self.held.values()) - self.held.get(session, 0) + wanted <= BUDGET_PAGES
        assert self.ledger.grow(session, layers=layers, positions=positions) is fits
        if fits:
            self.held[session] = wanted

    @rule(session=SESSIONS, layers=LAYERS, positions=POSITIONS)
    def shrink(self, session: int, layers: int, positions: int) -> None:
        self.ledger.shrink(session, layers=layers, positions=positions)
        if session in self.held:
            self.held[session] = min(self.held[session], pages(layers, positions))

    @rule(session=SESSIONS)
    def release(self, session: int) -> None:
        self.ledger.release(session)
        self.held.pop(session, None)

    @invariant()
    def sums_agree(self) -> None:
        self.ledger.check_integrity()
        used = sum(self.held.values())
        assert self.ledger.used_bytes == used * PAGE_POSITIONS * LAYER_BYTES
        assert self.ledger.usage_ratio == used / BUDGET_PAGES <= 1.0

    def teardown(self) -> None:
        for session in range(6):
            self.ledger.release(session)
        assert self.ledger.used_bytes == 0


Ledger.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedger = Ledger.TestCase


def test_a_refused_growth_changes_nothing() -> None:
    ledger = KvLedger(budget_bytes=2 * PAGE_POSITIONS, position_layer_bytes=1)
    assert ledger.grow(1, layers=1, positions=PAGE_POSITIONS)
    before = ledger.used_bytes
    assert not ledger.grow(1, layers=3, positions=1)
    assert not ledger.grow(2, layers=2, positions=1)
    assert ledger.used_bytes == before
    assert ledger.grow(2, layers=1, positions=1)  # the other page is still free


def test_a_budget_below_one_page_admits_nobody_and_reads_as_full() -> None:
    ledger = KvLedger(budget_bytes=PAGE_POSITIONS - 1, position_layer_bytes=1)
    assert ledger.usage_ratio == 1.0
    assert not ledger.grow(1, layers=1, positions=1)


def test_broken_books_are_noticed() -> None:
    ledger = KvLedger(budget_bytes=10 * PAGE_POSITIONS, position_layer_bytes=1)
    assert ledger.grow(1, layers=2, positions=1)
    ledger._used -= 1
    with pytest.raises(InternalError):
        ledger.check_integrity()
