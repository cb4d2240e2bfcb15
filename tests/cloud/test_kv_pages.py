"""Pages of keys and values: every page is free or in one table, and nobody gets more than there is."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from splitglm_cloud.engine.kv_pages import PAGE_POSITIONS, KvPages
from splitglm_core.errors import InternalError

SESSIONS = st.integers(0, 5)
POSITIONS = st.integers(0, 6 * PAGE_POSITIONS)
POOL = 40
PAGE_BYTES = 24 * PAGE_POSITIONS


def pages_for(positions: int) -> int:
    return (positions + PAGE_POSITIONS - 1) // PAGE_POSITIONS


class Pool(RuleBasedStateMachine):
    """Any order of growing, cutting and leaving; each session keeps its number of layers while it holds pages."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = KvPages.for_budget(POOL * PAGE_BYTES + PAGE_BYTES // 2, 24)
        self.tables: dict[int, list[list[int]]] = {}

    def free(self) -> int:
        return POOL - sum(len(table) for tables in self.tables.values() for table in tables)

    @rule(session=SESSIONS, layers=st.integers(1, 6), positions=POSITIONS)
    def grow(self, session: int, layers: int, positions: int) -> None:
        tables = self.tables.get(session) or [[] for _ in range(layers)]
        more = sum(max(0, pages_for(positions) - len(table)) for table in tables)
        missing = self.pages.missing(session, layers=len(tables), positions=positions)
        assert missing == max(0, more - self.free())
        granted = self.pages.grow(session, layers=len(tables), positions=positions)
        assert (granted is None) is (missing > 0)
        if granted is not None and more:
            assert len(granted) == len(tables)
            for table, new in zip(tables, granted, strict=True):
                table.extend(new)
                assert len(table) >= pages_for(positions)
            self.tables[session] = tables
        elif granted is not None:
            assert granted == ((),) * len(tables)

    @rule(session=SESSIONS, positions=POSITIONS)
    def shrink(self, session: int, positions: int) -> None:
        self.pages.shrink(session, positions=positions)
        tables = self.tables.get(session, [])
        for table in tables:
            del table[pages_for(positions) :]
        if not any(tables):
            self.tables.pop(session, None)

    @rule(session=SESSIONS)
    def release(self, session: int) -> None:
        assert self.pages.release(session) == sum(map(len, self.tables.pop(session, [])))

    @invariant()
    def each_page_has_one_place(self) -> None:
        self.pages.check_integrity()
        owned = [page for tables in self.tables.values() for table in tables for page in table]
        assert len(owned) == len(set(owned)) and all(0 <= page < POOL for page in owned)
        assert self.pages.used == len(owned) == POOL - self.pages.free
        assert self.pages.used_bytes == len(owned) * PAGE_BYTES
        assert self.pages.usage_ratio == len(owned) / POOL
        for session in range(6):
            tables = self.tables.get(session, [])
            assert self.pages.tables(session) == tuple(map(tuple, tables))
            assert self.pages.held(session) == sum(map(len, tables))

    def teardown(self) -> None:
        for session in range(6):
            self.pages.release(session)
        self.pages.check_integrity()
        assert self.pages.used == 0 and self.pages.free == POOL


Pool.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPool = Pool.TestCase


def test_a_refused_growth_changes_nothing() -> None:
    pages = KvPages(pages=4)
    assert pages.grow(1, layers=2, positions=1) is not None
    before = pages.tables(1)
    assert pages.grow(1, layers=2, positions=2 * PAGE_POSITIONS + 1) is None
    assert pages.grow(2, layers=3, positions=1) is None
    assert pages.missing(2, layers=3, positions=1) == 1
    assert pages.tables(1) == before and pages.tables(2) == () and pages.used == 2


def test_every_layer_has_pages_of_its_own_and_only_new_ones_are_named() -> None:
    pages = KvPages(pages=8)
    first = pages.grow(7, layers=2, positions=PAGE_POSITIONS)
    second = pages.grow(7, layers=2, positions=PAGE_POSITIONS + 1)
    assert first is not None and second is not None
    assert [len(new) for new in first + second] == [1, 1, 1, 1]
    assert len({page for new in first + second for page in new}) == 4
    assert pages.tables(7) == (first[0] + second[0], first[1] + second[1])
    assert pages.grow(7, layers=2, positions=3) == ((), ())


def test_a_page_that_came_back_is_granted_before_one_that_was_never_used() -> None:
    pages = KvPages(pages=1000)
    held = pages.grow(1, layers=1, positions=3 * PAGE_POSITIONS)
    pages.release(1)
    assert pages.grow(2, layers=1, positions=2 * PAGE_POSITIONS + 1) == held


def test_a_cut_keeps_the_page_that_is_partly_filled() -> None:
    pages = KvPages(pages=9)
    pages.grow(1, layers=3, positions=3 * PAGE_POSITIONS)
    kept = tuple(table[:2] for table in pages.tables(1))
    pages.shrink(1, positions=PAGE_POSITIONS + 1)
    assert pages.tables(1) == kept and pages.free == 3


def test_a_session_cut_to_nothing_may_come_back_with_other_layers() -> None:
    pages = KvPages(pages=9)
    pages.grow(1, layers=3, positions=5)
    with pytest.raises(InternalError, match="3 layers, not of 4"):
        pages.grow(1, layers=4, positions=5)
    pages.shrink(1, positions=0)
    granted = pages.grow(1, layers=4, positions=5)
    assert granted is not None and len(granted) == 4


def test_a_budget_below_one_page_admits_nobody_and_reads_as_full() -> None:
    pages = KvPages.for_budget(PAGE_POSITIONS - 1, 1)
    assert pages.total == 0 and pages.usage_ratio == 1.0
    assert pages.grow(1, layers=1, positions=1) is None
    assert pages.missing(1, layers=1, positions=1) == 1


@pytest.mark.parametrize("break_it", ["lose", "share", "sum", "session"])
def test_broken_books_are_noticed(break_it: str) -> None:
    pages = KvPages(pages=10)
    pages.grow(1, layers=2, positions=1)
    pages.grow(2, layers=1, positions=1)
    pages.release(2)
    pages.check_integrity()
    if break_it == "lose":
        pages._returned.pop()
    elif break_it == "share":
        pages._tables[1][1][0] = pages._tables[1][0][0]
    elif break_it == "sum":
        pages._used -= 1
    else:
        pages._held[1] += 1
    with pytest.raises(InternalError):
        pages.check_integrity()


@pytest.mark.parametrize(("pages", "page_bytes"), [(-1, 8), (8, -1)])
def test_a_pool_that_cannot_be_is_refused(pages: int, page_bytes: int) -> None:
    with pytest.raises(InternalError):
        KvPages(pages=pages, page_bytes=page_bytes)
    with pytest.raises(InternalError):
        KvPages.for_budget(100, 0)
