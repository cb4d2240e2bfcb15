"""The page pool, block tables, and who attends together."""

from __future__ import annotations

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitglm_cloud.engine.kv_pages import PAGE_POSITIONS
from splitglm_cloud.engine.paged_attention import FEW_ROWS, SLACK_PAGES, PagedRider, groups_of
from splitglm_cloud.engine.paged_kv import PagedCache, PagePool
from splitglm_core.errors import DeviceError, InternalError
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape

SHAPE = ModelShape(
    layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=320, max_positions=4096,
    tied_head=False,
)  # fmt: skip
LAYERS = LayerRange(1, 3)


def make_pool(pages: int = 12, *, poison: bool = True) -> PagePool:
    pool = PagePool(SHAPE, dtype=torch.float32, device=torch.device("cpu"), poison_freed=poison)
    pool.reserve(pages)
    return pool


@pytest.fixture
def pool() -> PagePool:
    return make_pool()


def slots(page: int) -> slice:
    return slice(page * PAGE_POSITIONS, (page + 1) * PAGE_POSITIONS)


def written(pool: PagePool, ids: list[list[int]], positions: int) -> PagedCache:
    """A cache of ``LAYERS`` with these pages, all filled with ones, and so many positions."""
    cache = PagedCache(pool, LAYERS, 512)
    cache.extend(ids)
    cache.commit(LAYERS, positions)
    for page in (page for of_layer in ids for page in of_layer):
        pool.keys[slots(page)] = pool.values[slots(page)] = 1
    return cache


def test_block_tables_follow_the_grants_in_order(pool: PagePool) -> None:
    cache = PagedCache(pool, LAYERS, 512)
    cache.extend([[7, 2], [0, 11]])
    cache.extend([[], []])
    cache.extend([[5], [1]])
    assert cache.table(LAYERS, 3 * PAGE_POSITIONS).tolist() == [[7, 2, 5], [0, 11, 1]]
    assert cache.table(LayerRange(2, 3), PAGE_POSITIONS + 1).tolist() == [[0, 11]]
    assert cache.committed == 3 * PAGE_POSITIONS and cache.length == 0 and pool.used == 6
    with pytest.raises(InternalError):
        cache.table(LAYERS, 3 * PAGE_POSITIONS + 1)


@pytest.mark.parametrize("kept", [0, 1, PAGE_POSITIONS - 1, PAGE_POSITIONS, PAGE_POSITIONS + 1])
def test_a_cut_gives_back_exactly_the_pages_wholly_beyond(pool: PagePool, kept: int) -> None:
    cache = written(pool, [[3, 4, 5], [8, 7, 6]], 2 * PAGE_POSITIONS + 5)
    cache.truncate(kept)
    pages = -(-kept // PAGE_POSITIONS)
    assert cache.length == kept and cache.committed == pages * PAGE_POSITIONS == cache.committed_for(kept)
    assert pool.used == 2 * pages
    assert bool(torch.isnan(pool.keys[slots(5)]).all()) and bool(torch.isnan(pool.values[slots(6)]).all())
    assert not torch.isnan(pool.keys[slots(3)]).any() or kept == 0
    other = PagedCache(pool, LayerRange(0, 1), 512)
    other.extend([[5, 6]])  # what was given back can be granted again
    cache.close()
    cache.close()
    assert pool.used == 2


def test_pages_that_belong_to_nobody_are_poison_and_the_null_page_is_not(pool: PagePool) -> None:
    assert bool(torch.isnan(pool.keys[: slots(pool.null_page).start]).all())
    written(pool, [[3, 4], [8, 7]], 70).close()
    for tensor in (pool.keys, pool.values):
        assert bool(torch.isnan(tensor[: slots(pool.null_page).start]).all())
        assert not tensor[slots(pool.null_page)].any()


@pytest.mark.parametrize(
    "pages",
    [[[3], [3]], [[0], [12]], [[-1], [0]], [[9], [1]], [[1], [2, 3]], [[1]], [[1], [2], [3]]],
    ids=["twice", "beyond the pool", "negative", "another's", "ragged", "too few layers", "too many layers"],
)
def test_a_wrong_grant_is_refused_and_changes_nothing(pool: PagePool, pages: list[list[int]]) -> None:
    other = PagedCache(pool, LAYERS, 512)
    other.extend([[9], [10]])
    cache = PagedCache(pool, LAYERS, 512)
    with pytest.raises(InternalError):
        cache.extend(pages)
    assert cache.committed == 0 and pool.used == 2
    cache.extend([[1], [2]])
    assert pool.used == 4


@pytest.mark.parametrize("length", [-1, 71])
def test_a_cut_to_what_was_never_held_is_refused(pool: PagePool, length: int) -> None:
    cache = written(pool, [[3, 4], [8, 7]], 70)
    with pytest.raises(InternalError):
        cache.truncate(length)
    assert cache.length == 70 and pool.used == 4


def test_layers_count_their_own_positions(pool: PagePool) -> None:
    cache = written(pool, [[3], [8]], 10)
    cache.commit(LayerRange(1, 2), 5)
    assert cache.length == 10 and cache.length_of(LayerRange(1, 2)) == 15
    with pytest.raises(InternalError):
        cache.length_of(LAYERS)
    with pytest.raises(InternalError):
        cache.length_of(LayerRange(0, 2))
    cache.truncate(12)
    assert cache.length_of(LayerRange(1, 2)) == 12 and cache.length_of(LayerRange(2, 3)) == 10
    cache.close()
    with pytest.raises(InternalError):
        cache.length_of(LAYERS)
    with pytest.raises(InternalError):
        cache.extend([[1], [2]])


def test_a_pool_in_use_cannot_be_made_again(pool: PagePool) -> None:
    cache = written(pool, [[3], [8]], 10)
    with pytest.raises(InternalError):
        pool.reserve(100)
    cache.close()
    pool.reserve(100)
    assert pool.pages == 100


def test_a_pool_costs_no_memory_before_it_is_used() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    pool = make_pool(40_000, poison=False)  # 40,000 pages of 16 KiB
    assert pool.keys.nbytes + pool.values.nbytes > 600 << 20
    assert process.memory_info().rss - before < 60 << 20


def test_a_pool_that_does_not_fit_is_refused_as_this_machines_lack() -> None:
    pool = make_pool(2)
    with pytest.raises(DeviceError, match="bytes of keys and values"):
        pool.reserve(1 << 44)
    assert pool.pages == 2


RIDERS = st.lists(st.tuples(st.sampled_from([0, 1, 1, 1, 1, 2, 5, FEW_ROWS, FEW_ROWS + 1]), st.integers(0, 4000)))


@given(RIDERS)
def test_riders_are_grouped_once_each_by_rows_and_with_bounded_padding(sizes: list[tuple[int, int]]) -> None:
    cache = PagedCache(make_pool(0), LAYERS, 4096)
    riders, start = [], 0
    for rows, base in sizes:
        riders.append(PagedRider(cache, start, rows, base))
        start += rows
    groups = groups_of(riders)
    assert sorted(rider.start for group in groups for rider in group) == [r.start for r in riders if r.rows]
    for group in groups:
        assert len({rider.rows for rider in group}) == 1
        assert list(group) == sorted(group, key=lambda rider: rider.start)
        assert len(group) == 1 or group[0].rows <= FEW_ROWS
        longest = max(rider.pages for rider in group)
        assert all(longest - rider.pages <= max(rider.pages, SLACK_PAGES) for rider in group)


@pytest.mark.parametrize(
    ("bases", "groups"),
    [
        ([100, 300, 90, 110], [[100, 300, 90, 110]]),
        ([900, 1000, 700, 950], [[900, 1000, 700, 950]]),
        ([10, 4000, 20, 30, 3900], [[4000, 3900], [10, 20, 30]]),
    ],
    ids=["short", "similar", "far apart"],
)
def test_decoding_sessions_of_similar_length_attend_in_one_call(bases: list[int], groups: list[list[int]]) -> None:
    cache = PagedCache(make_pool(0), LAYERS, 4096)
    riders = [PagedRider(cache, i, 1, base) for i, base in enumerate(bases)]
    assert [[rider.base for rider in group] for group in groups_of(riders)] == groups
