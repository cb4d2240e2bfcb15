"""The ledger of KV memory: who holds how many pages. Pure accounting; the arrays belong to the runner.

A page is ``PAGE_POSITIONS`` positions of one layer. What is counted is the memory that a cache has committed, not the
positions it holds: a cache commits memory as positions are written and gives it back when it is cut
(``Cache.committed``), so the budget bounds what the process really uses.
"""

from __future__ import annotations

from typing import Final

from splitglm_core.errors import InternalError

PAGE_POSITIONS: Final = 64


class KvLedger:
    """Pages of all sessions against one budget.

    Args:
        budget_bytes: memory for keys and values of all sessions.
        position_layer_bytes: bytes of keys and values of one position in one layer.
    """

    def __init__(self, *, budget_bytes: int, position_layer_bytes: int) -> None:
        self._page_bytes = PAGE_POSITIONS * position_layer_bytes
        self._budget = budget_bytes // self._page_bytes
        self._held: dict[int, int] = {}
        self._used = 0

    @property
    def used_bytes(self) -> int:
        return self._used * self._page_bytes

    @property
    def usage_ratio(self) -> float:
        return self._used / self._budget if self._budget else 1.0

    def held_bytes(self, session: int) -> int:
        return self._held.get(session, 0) * self._page_bytes

    def grow(self, session: int, *, layers: int, positions: int) -> bool:
        """Hold what ``positions`` positions in ``layers`` layers need. False, and no change, when it does not fit."""
        wanted = layers * -(-positions // PAGE_POSITIONS)
        more = wanted - self._held.get(session, 0)
        if more <= 0:
            return True
        if self._used + more > self._budget:
            return False
        self._held[session] = wanted
        self._used += more
        return True

    def missing_bytes(self, session: int, *, layers: int, positions: int) -> int:
        """What others would have to give back before ``grow`` succeeds."""
        more = layers * -(-positions // PAGE_POSITIONS) - self._held.get(session, 0)
        return max(0, self._used + more - self._budget) * self._page_bytes

    def shrink(self, session: int, *, layers: int, positions: int) -> None:
        """Give back the pages beyond ``positions``."""
        wanted = layers * -(-positions // PAGE_POSITIONS)
        held = self._held.get(session, 0)
        if wanted < held:
            self._held[session] = wanted
            self._used -= held - wanted

    def release(self, session: int) -> None:
        self._used -= self._held.pop(session, 0)

    def check_integrity(self) -> None:
        """Raise when the sums disagree or the budget is exceeded."""
        if self._used != sum(self._held.values()) or not 0 <= self._used <= self._budget:
            raise InternalError("the KV ledger's sums disagree")
