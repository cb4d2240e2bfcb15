"""Pages of keys and values: which session holds which page of the one pool. Pure; the arrays belong to the runner.

A page is ``PAGE_POSITIONS`` positions of *one* layer, so a session that computes layers ``[s, t)`` holds pages for
those layers only. Paging keeps the unused part of a session's memory below one page per layer (Kwon et al., "Efficient
Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023).
"""

from __future__ import annotations

from typing import Final

from splitglm_core.errors import InternalError

PAGE_POSITIONS: Final = 64

Tables = tuple[tuple[int, ...], ...]
"""Per layer, the page ids in order of their positions."""


class KvPages:
    """One pool of page ids ``[0, pages)``.

    A page that was given back last is granted first: its memory is the likeliest to be committed and cached.
    Time is in the pages that change hands (and in the layers of the session), never in the size of the pool.

    Args:
        pages: size of the pool.
        page_bytes: bytes of keys and values of one page, for reports in bytes.
    """

    def __init__(self, *, pages: int, page_bytes: int = 0) -> None:
        if pages < 0 or page_bytes < 0:
            raise InternalError(f"a pool of {pages} pages of {page_bytes} bytes cannot be")
        self.total: Final = pages
        self.page_bytes: Final = page_bytes
        self._fresh = 0  # pages [_fresh, total) were never granted: a big pool costs nothing before it is used
        self._returned: list[int] = []
        self._tables: dict[int, list[list[int]]] = {}
        self._held: dict[int, int] = {}
        self._used = 0

    @classmethod
    def for_budget(cls, budget_bytes: int, position_layer_bytes: int) -> KvPages:
        """As many pages as fit into ``budget_bytes``; ``position_layer_bytes`` is one position in one layer."""
        if position_layer_bytes <= 0:
            raise InternalError(f"keys and values of {position_layer_bytes} bytes cannot be paged")
        page_bytes = PAGE_POSITIONS * position_layer_bytes
        return cls(pages=max(0, budget_bytes) // page_bytes, page_bytes=page_bytes)

    @property
    def used(self) -> int:
        return self._used

    @property
    def free(self) -> int:
        return self.total - self._used

    @property
    def used_bytes(self) -> int:
        return self._used * self.page_bytes

    @property
    def usage_ratio(self) -> float:
        return self._used / self.total if self.total else 1.0

    def held(self, session: int) -> int:
        """Pages of all layers of ``session``."""
        return self._held.get(session, 0)

    def tables(self, session: int) -> Tables:
        """The session's pages per layer; empty when it holds none."""
        return tuple(tuple(table) for table in self._tables.get(session, ()))

    def grow(self, session: int, *, layers: int, positions: int) -> Tables | None:
        """Hold what the first ``positions`` positions of each of ``layers`` layers need.

        Returns:
            Per layer the ids of the pages that are new, in order; all empty when enough was held. None, and no change,
            when the pool has too few.

        Raises:
            InternalError: the session holds pages for another number of layers.
        """
        wanted, more = self._wanted(session, layers, positions)
        if more > self.free:
            return None
        if not more:
            return ((),) * layers
        tables = self._tables.setdefault(session, [[] for _ in range(layers)])
        granted = tuple(self._take(wanted - len(table)) for table in tables)
        for table, pages in zip(tables, granted, strict=True):
            table.extend(pages)
        self._held[session] = self._held.get(session, 0) + more
        self._used += more
        return granted

    def missing(self, session: int, *, layers: int, positions: int) -> int:
        """Pages that others must give back before ``grow`` succeeds; 0 when it would succeed now."""
        return max(0, self._wanted(session, layers, positions)[1] - self.free)

    def shrink(self, session: int, *, positions: int) -> None:
        """Give back the pages that lie wholly beyond the first ``positions`` positions."""
        kept = pages_for(positions)
        if not kept:
            self.release(session)
            return
        for table in self._tables.get(session, ()):
            gone = len(table) - kept
            if gone > 0:
                self._returned.extend(reversed(table[kept:]))
                del table[kept:]
                self._held[session] -= gone
                self._used -= gone

    def release(self, session: int) -> int:
        """Give back everything; returns how many pages that were."""
        for table in self._tables.pop(session, ()):
            self._returned.extend(reversed(table))
        gone = self._held.pop(session, 0)
        self._used -= gone
        return gone

    def check_integrity(self) -> None:
        """Raise unless every page is either free or in exactly one place of one table, and the sums agree."""
        owned = [page for tables in self._tables.values() for table in tables for page in table]
        known = sorted([*owned, *self._returned])
        if known != list(range(self._fresh)) or not 0 <= self._fresh <= self.total:
            raise InternalError("a page of keys and values is lost or held twice")
        held = {session: sum(map(len, tables)) for session, tables in self._tables.items()}
        if held != self._held or self._used != len(owned) or 0 in held.values():
            raise InternalError("the sums of the pages of keys and values disagree")

    def _wanted(self, session: int, layers: int, positions: int) -> tuple[int, int]:
        """Pages wanted in each layer, and in all layers together beyond those held."""
        tables = self._tables.get(session)
        if tables is not None and len(tables) != layers:
            raise InternalError(f"session {session} holds pages of {len(tables)} layers, not of {layers}")
        wanted = pages_for(positions)
        if tables is None:
            return wanted, wanted * layers
        return wanted, sum(max(0, wanted - len(table)) for table in tables)

    def _take(self, count: int) -> tuple[int, ...]:
        """``count`` free pages; the caller has seen that there are as many."""
        if count <= 0:
            return ()
        kept = max(0, len(self._returned) - count)
        pages = self._returned[kept:][::-1]
        del self._returned[kept:]
        fresh = count - len(pages)
        pages.extend(range(self._fresh, self._fresh + fresh))
        self._fresh += fresh
        return tuple(pages)


def pages_for(positions: int) -> int:
    """Pages of one layer that hold ``positions`` positions."""
    return -(-max(0, positions) // PAGE_POSITIONS)
