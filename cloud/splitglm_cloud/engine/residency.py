"""Whose keys and values are in memory: pages for those who work, eviction of those who can be rebuilt.

When pages run short, idle sessions lose theirs first, the least critical and longest unused before the others; then
sessions at work that are less critical, or of the same tenant and younger, or of a tenant that holds more for its
weight than the one in need would then hold; or simply younger, unless their tenant could take the pages back for that
reason. So two can never evict each other in turn, and the oldest session of a tenant always progresses. A session used
a moment ago counts as being at work: its device is about to send its next token. Who finds no room waits, holding what
it has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Final

from splitglm_cloud.engine.carousel import Carousel
from splitglm_cloud.engine.events import Emit, Evicted
from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_cloud.engine.slots import Slot

RECENT_S: Final = 1.0
"""An idle session this recently used is not evicted by one that it could evict itself."""
RETRY_S: Final = 0.05
"""How long those who wait for memory wait at most before it is sought again although none came free."""


class Room(Enum):
    HELD = "held"
    PARKED = "parked"
    NEVER = "never"  # more than the whole pool


class Residency:
    """Gives pages to sessions and takes them from others.

    Args:
        slots: the engine's sessions, a live view.
    """

    def __init__(self, slots: Mapping[int, Slot], pages: KvPages, carousel: Carousel, emit: Emit) -> None:
        self._slots = slots
        self._pages = pages
        self._carousel = carousel
        self._emit = emit
        self._parked: dict[int, Slot] = {}
        self._sought_s = -math.inf  # when those who wait were tried last, and what was free afterwards
        self._found_free = 0
        self.evictions = 0
        self.preemptions = 0

    @property
    def parked(self) -> int:
        """Sessions whose step waits for memory."""
        return len(self._parked)

    def hold(self, slot: Slot, positions: int, now_s: float) -> Room:
        """Pages for ``positions`` positions of the session; where there are none now, its step is parked."""
        layers, positions = len(slot.cache.layers), slot.cache.committed_for(positions)
        granted = self._pages.grow(slot.key, layers=layers, positions=positions)
        if granted is None:
            missing = self._pages.missing(slot.key, layers=layers, positions=positions)
            for victim in self._victims(slot, missing, now_s):
                self.evict(victim)
            granted = self._pages.grow(slot.key, layers=layers, positions=positions)
        if granted is not None:
            slot.cache.extend(granted)
            return Room.HELD
        if missing + self._pages.free + self._pages.held(slot.key) > self._pages.total:
            return Room.NEVER
        self._carousel.remove(slot.key)
        self._parked[slot.key] = slot
        return Room.PARKED

    def unpark(self, now_s: float) -> list[Slot]:
        """Sessions that waited for memory, the most important first. Their steps are to be tried again.

        Each of them looks at every session, so between two batches it is done only where there is more memory now.
        """
        free = self._pages.free
        if not self._parked or (free <= self._found_free and now_s - self._sought_s < RETRY_S):
            self._found_free = min(free, self._found_free)
            return []
        self._sought_s, self._found_free = now_s, free
        waiting = sorted(self._parked.values(), key=_importance)
        self._parked.clear()
        return waiting

    def forget(self, session: int) -> None:
        """The session's step ended, or the session did."""
        self._parked.pop(session, None)

    def evict(self, slot: Slot) -> None:
        """Take everything from a session, and tell whoever can rebuild it."""
        run, slot.run = slot.run, None
        self._carousel.remove(slot.key)
        self._parked.pop(slot.key, None)
        slot.cache.truncate(0)
        self._pages.release(slot.key)
        if run is None:
            self.evictions += 1
        else:
            self.preemptions += 1
        self._emit(slot.key, Evicted(None if run is None else run.step.seq))

    def _victims(self, needy: Slot, missing_pages: int, now_s: float) -> list[Slot]:
        """Whose going gives ``missing_pages``; nobody when all of them together would not."""
        others = [slot for slot in self._slots.values() if slot is not needy and self._pages.held(slot.key)]
        idle = [slot for slot in others if slot.run is None and now_s - slot.used_s > RECENT_S]
        idle.sort(key=lambda slot: (slot.config.criticality, -slot.used_s, -slot.born))
        busy = [slot for slot in others if slot.run is not None or now_s - slot.used_s <= RECENT_S]
        of_tenant: Counter[str] = Counter()
        for slot in (*others, needy):
            of_tenant[slot.owner.tenant] += self._pages.held(slot.key)
        chosen: list[Slot] = []
        while missing_pages > 0:
            if idle:
                victim = idle.pop()
            else:
                rivals = [slot for slot in busy if self._gives_way(slot, needy, missing_pages, of_tenant)]
                if not rivals:
                    return []
                victim = max(rivals, key=_importance)
                busy.remove(victim)
            chosen.append(victim)
            of_tenant[victim.owner.tenant] -= self._pages.held(victim.key)
            missing_pages -= self._pages.held(victim.key)
        return chosen

    def _gives_way(self, slot: Slot, needy: Slot, missing_pages: int, of_tenant: Counter[str]) -> bool:
        """Whether a session at work loses its pages to ``needy``; ``of_tenant`` counts the pages of all."""
        if slot.config.criticality != needy.config.criticality:
            return slot.config.criticality > needy.config.criticality
        if slot.owner.tenant == needy.owner.tenant:
            return slot.born > needy.born
        theirs, mine = of_tenant[slot.owner.tenant], of_tenant[needy.owner.tenant]
        if (theirs - self._pages.held(slot.key)) / slot.owner.weight >= (mine + missing_pages) / needy.owner.weight:
            return True
        could_take_it_back = (mine - self._pages.held(needy.key)) / needy.owner.weight >= theirs / slot.owner.weight
        return slot.born > needy.born and not could_take_it_back


def _importance(slot: Slot) -> tuple[int, int]:
    """Smaller is more important; no two sessions are equal."""
    return slot.config.criticality, slot.born
